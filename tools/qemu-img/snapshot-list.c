/* SPDX-License-Identifier: MIT */
/* Lists of internal snapshots for people and programs, and choosing one of them. */
#include "tools/qemu-img/img.h"
#include "base/mem.h"
#include <time.h>

static void print_row(const struct block_snapshot *s)
{
	time_t sec = s->date_sec;
	uint64_t ms = s->vm_clock_nsec / 1000000;
	char date[32] = "", clock[32], icount[24] = "--";
	struct tm tm;

	if (localtime_r(&sec, &tm))
		strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
	snprintf(clock, sizeof(clock), "%04llu:%02u:%02u.%03u", (unsigned long long)(ms / 3600000),
		(unsigned)(ms / 60000 % 60), (unsigned)(ms / 1000 % 60), (unsigned)(ms % 1000));
	if (s->icount != UINT64_MAX)
		snprintf(icount, sizeof(icount), "%llu", (unsigned long long)s->icount);
	printf("%-7s %-16s %8s %19s %15s %10s\n", s->id, s->name, size_short(s->vm_state_size).s,
		date, clock, icount);
}

void img_print_snapshots(const struct block_snapshot *s, size_t n)
{
	if (!n)
		return;
	printf("Snapshot list:\n%-7s %-16s %8s %19s %15s %10s\n", "ID", "TAG", "VM_SIZE", "DATE",
		"VM_CLOCK", "ICOUNT");
	for (size_t i = 0; i < n; i++)
		print_row(&s[i]);
}

void img_json_snapshots(
	struct json_writer *w, const char *key, const struct block_snapshot *s, size_t n)
{
	json_list(w, key);
	for (size_t i = 0; i < n; i++) {
		json_object(w, NULL);
		if (s[i].icount != UINT64_MAX)
			json_u64(w, "icount", s[i].icount);
		json_u64(w, "vm-clock-nsec", s[i].vm_clock_nsec % 1000000000u);
		json_string(w, "name", s[i].name);
		json_u64(w, "date-sec", s[i].date_sec);
		json_u64(w, "date-nsec", s[i].date_nsec);
		json_u64(w, "vm-clock-sec", s[i].vm_clock_nsec / 1000000000u);
		json_string(w, "id", s[i].id);
		json_u64(w, "vm-state-size", s[i].vm_state_size);
		json_object_end(w);
	}
	json_list_end(w);
}

void img_free_snapshots(struct block_snapshot *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		mem_free(s[i].id);
		mem_free(s[i].name);
	}
	mem_free(s);
}

/* The id of the snapshot that has the id and the name asked for (each may be NULL). */
static int co_find(struct block_node *n, const char *id, const char *name, char **ret)
{
	struct block_snapshot *list;
	size_t count;
	int r = n->drv->snapshot->co_list(n, &list, &count);

	if (r < 0)
		return r;
	r = -ENOENT;
	for (size_t i = 0; i < count && r == -ENOENT; i++)
		if ((!id || !strcmp(id, list[i].id)) && (!name || !strcmp(name, list[i].name))) {
			*ret = mem_strdup(list[i].id);
			r = *ret ? 0 : -ENOMEM;
		}
	img_free_snapshots(list, count);
	return r;
}

static const char *member(struct conf *c, const char *key)
{
	struct conf *v = c ? conf_get(c, key) : NULL;

	return v && conf_type(v) == CONF_SCALAR ? conf_text(v) : NULL;
}

/* Turns `snapshot.id=..,snapshot.name=..` into an id; plain text stays as it is (*ret NULL). */
static int co_resolve(struct block_node *n, const char *which, char **ret, struct error *err)
{
	_cleanup_(conf_freep) struct conf *c = NULL;
	struct conf *s;
	int r;

	*ret = NULL;
	if (strncmp(which, "snapshot.", 9) != 0)
		return 0;
	r = conf_parse_options(which, NULL, &c, err);
	if (r < 0)
		return r;
	s = conf_get(c, "snapshot");
	r = co_find(n, member(s, "id"), member(s, "name"), ret);
	if (r < 0)
		return error_set_errno(err, r, "Failed to load snapshot: no snapshot '%s' in '%s'",
			which, n->filename);
	return conf_check_unused(c, err);
}

int co_img_open_snapshot(struct block_node **n, const char *which, struct error *err)
{
	struct block_node *base = *n, *view;
	_cleanup_free_ char *id = NULL;
	int r;

	if (!base->drv->snapshot)
		return error_set(err, -ENOTSUP,
			"'%s' is a %s image, which has no internal snapshots", base->filename,
			base->drv->name);
	r = co_resolve(base, which, &id, err);
	if (r < 0)
		return r;
	r = base->drv->snapshot->co_open(base, id ? id : which, &view, err);
	if (r < 0) {
		error_prefix(err, "Failed to load snapshot");
		return r;
	}
	co_block_node_unref(base); /* the view holds it */
	*n = view;
	return 0;
}
