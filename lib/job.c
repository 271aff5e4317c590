/* SPDX-License-Identifier: MIT */
/* Jobs of the public API: copies and commits in the background, on the control thread. */
#include "lib/lib.h"
#include "base/mem.h"

#define MIN_SPARSE 4096u

struct drover_job {
	struct control_task task;
	struct block_job job;
	struct block_copy copy;
	struct drover_image *src, *dst; /* dst NULL: a commit */
	struct error err;
};

static int co_copy_job(void *arg)
{
	struct drover_job *j = arg;
	int r = co_block_copy(&j->copy, &j->err);

	if (r)
		return r;
	r = co_block_flush(j->copy.dst);
	return r ? error_set_errno(&j->err, r, "Flushing the target failed") : 0;
}

/* Writes into the backing file what the image has itself, then empties the image. The data is
 * durable in the backing file before the first of it goes from the image. */
static int co_commit_into(struct drover_job *j, struct block_node *top, struct block_node *base)
{
	int r;

	if (block_size(base) < block_size(top)) {
		struct block_resize grow = {.size = block_size(top)};

		r = co_block_resize(base, &grow, &j->err);
		if (r)
			return r;
	}
	j->copy.src = j->src->node;
	j->copy.base = base;
	j->copy.dst = base;
	j->copy.len = block_size(top);
	r = co_block_copy(&j->copy, &j->err);
	if (!r) {
		r = co_block_flush(base);
		if (r)
			error_set_errno(&j->err, r, "Flushing the backing file failed");
	}
	if (!r && top->drv->image && top->drv->image->co_make_empty)
		r = top->drv->image->co_make_empty(top, &j->err);
	return r;
}

static int co_commit_job(void *arg)
{
	struct drover_job *j = arg;
	struct block_node *top = block_skip_filters(j->src->node);
	struct block_node *base = block_backing(top);
	struct block_open_opts opts = base->opts, back = base->opts;
	int r, r2;

	opts.flags |= BLOCK_OPEN_RDWR;
	r = co_block_reopen(base, &opts, &j->err);
	if (r)
		return r;
	r = co_commit_into(j, top, base);
	r2 = co_block_reopen(base, &back, r ? NULL : &j->err);
	return r ? r : r2;
}

static int job_new(struct drover_image *src, struct drover_image *dst,
	const struct drover_copy_opts *opts, struct drover_job **ret, struct drover_error *err)
{
	const uint32_t known = DROVER_COPY_TARGET_IS_ZERO | DROVER_COPY_COMPRESS |
			       DROVER_COPY_IN_ORDER | DROVER_COPY_OFFLOAD | DROVER_COPY_SALVAGE |
			       DROVER_COPY_KEEP_BACKING;
	struct drover_copy_opts o;
	struct drover_job *j;
	int r = lib_struct_in(&o, sizeof(o), sizeof(o), opts);

	if (r || o.flags & ~known)
		return lib_error_text(err, r ? r : -EINVAL,
			"The job was given options that this library does not know");
	j = mem_zalloc(sizeof(*j));
	if (!j)
		return lib_error_text(err, -ENOMEM, "Out of memory");
	block_job_init(&j->job);
	j->job.rate = o.rate;
	j->src = src;
	j->dst = dst;
	j->copy = (struct block_copy){
		.threads = o.threads,
		.depth = o.depth,
		.min_sparse = o.min_sparse ? o.min_sparse : MIN_SPARSE,
		.dst_is_zero = o.flags & DROVER_COPY_TARGET_IS_ZERO,
		.compress = o.flags & DROVER_COPY_COMPRESS,
		.in_order = o.flags & DROVER_COPY_IN_ORDER,
		.offload = o.flags & DROVER_COPY_OFFLOAD,
		.salvage = o.flags & DROVER_COPY_SALVAGE,
		.dst_has_backing = o.flags & DROVER_COPY_KEEP_BACKING,
		.refuse_amplified = src->trust.refuse_amplification,
		.job = &j->job,
	};
	*ret = j;
	return 0;
}

static void job_start(struct drover_job *j, int (*fn)(void *arg))
{
	image_use(j->src);
	if (j->dst)
		image_use(j->dst);
	j->task.fn = fn;
	j->task.arg = j;
	control_start(&j->task);
}

int drover_copy(struct drover_image *src, struct drover_image *dst,
	const struct drover_copy_opts *opts, struct drover_job **ret, struct drover_error *err)
{
	struct drover_job *j;
	int r;

	if (!src || !dst || !ret || src == dst)
		return lib_error_text(err, -EINVAL, "drover_copy() needs two images");
	if (!(dst->node->opts.flags & BLOCK_OPEN_RDWR))
		return lib_error_text(err, -EPERM, "The target of the copy is open read-only");
	if (block_size(dst->node) < block_size(src->node))
		return lib_error_text(err, -EINVAL, "The target is smaller than the source");
	r = job_new(src, dst, opts, &j, err);
	if (r)
		return r;
	j->copy.src = src->node;
	j->copy.dst = dst->node;
	j->copy.len = block_size(src->node);
	j->job.total = j->copy.len;
	job_start(j, co_copy_job);
	*ret = j;
	return 0;
}

int drover_commit(struct drover_image *img, const struct drover_copy_opts *opts,
	struct drover_job **ret, struct drover_error *err)
{
	struct drover_job *j;
	int r;

	if (!img || !ret)
		return lib_error_text(err, -EINVAL, "drover_commit() needs an image");
	if (!block_backing(img->node))
		return lib_error_text(err, -ENOTSUP, "The image has no backing file");
	if (!(img->node->opts.flags & BLOCK_OPEN_RDWR))
		return lib_error_text(err, -EPERM, "The image is open read-only");
	r = job_new(img, NULL, opts, &j, err);
	if (r)
		return r;
	/* What the image does not have itself is in the backing file already. */
	j->copy.dst_has_backing = true;
	j->copy.dst_is_zero = false;
	j->copy.compress = false;
	j->job.total = block_size(img->node);
	job_start(j, co_commit_job);
	*ret = j;
	return 0;
}

int drover_job_status(const struct drover_job *job, struct drover_job_status *ret)
{
	struct drover_job *j = (struct drover_job *)job; /* a lock is taken, nothing changes */
	struct drover_job_status s = {.result = -EINPROGRESS};

	s.done = __atomic_load_n(&j->job.done, __ATOMIC_RELAXED);
	s.total = __atomic_load_n(&j->job.total, __ATOMIC_RELAXED);
	control_done(&j->task, &s.result);
	return lib_struct_out(ret, &s, sizeof(s), sizeof(s));
}

void drover_job_cancel(struct drover_job *job)
{
	block_job_cancel(&job->job);
}

void drover_job_pause(struct drover_job *job, int paused)
{
	block_job_pause(&job->job, paused);
}

void drover_job_rate(struct drover_job *job, uint64_t rate)
{
	__atomic_store_n(&job->job.rate, rate, __ATOMIC_RELAXED);
}

int drover_job_wait(struct drover_job *job, int64_t timeout_ns)
{
	return control_wait(&job->task, timeout_ns);
}

int drover_job_free(struct drover_job *job, struct drover_error *err)
{
	int r;

	if (!job)
		return 0;
	control_wait(&job->task, -1);
	r = job->task.result;
	image_unuse(job->src);
	if (job->dst)
		image_unuse(job->dst);
	if (r)
		lib_error(err, r, &job->err);
	mem_free(job);
	return r;
}
