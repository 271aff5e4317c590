/* SPDX-License-Identifier: MIT */
/*
 * Coroutines: stacks, the context switch, start, yield and wake.
 *
 * Theory of operation
 *
 * A coroutine is a stack of 128 KiB with a guard area below and its struct co at the top. A switch
 * stores the callee-saved registers on the stack that is left, exchanges stack pointers and jumps
 * to where the other stack was left; the compiler has saved everything else around the call. The
 * floating-point control words are not switched: nothing here changes them.
 *
 * Whoever resumes a coroutine (the ring, or a coroutine that started it) is its caller; a yield
 * goes back to the caller. So control on a thread is always a chain main -> co -> co, whose last
 * member runs.
 *
 * An ended coroutine stays parked in the loop of ctx_main() and goes to the thread's pool, from
 * which the next start takes it without touching the stack's contents; TSan's and ASan's idea of
 * the stack stays true because frames are neither left nor entered behind their backs.
 *
 * Invariants
 * C1 A coroutine is resumed only by the thread of its ring.
 * C2 A coroutine is on the ready list or in the inbox at most once, and only between its wake and
 *    its next run. The ring runs it only after it has yielded, because ready coroutines are run
 *    only from the ring's turn, when nothing else runs on the thread.
 */
#include "base/runtime.h"
#include "base/mem.h"

#include <assert.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define CO_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CO_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define CO_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CO_TSAN 1
#endif
#endif
#ifdef CO_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CO_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__has_include)
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#endif
#endif

#define CO_STACK_SIZE (128 * KiB)
/* Wide enough that a function's frame does not step over it. */
#define CO_GUARD_SIZE (64 * KiB)
#define CO_POOL_MAX   256u

__thread struct co_thread co_thread;

/* Stores the running context's stack pointer in *save and continues the one at `sp`. */
void ctx_jump(void **save, void *sp);
/* Where a new stack begins: calls ctx_main() with the struct co found in a saved register. */
void ctx_begin(void);
void ctx_main(struct co *co);

/* Leaves by a jump, not a return: the return-address predictor would always be wrong. */
#if defined(__x86_64__)
__asm__(".text\n"
	".p2align 4\n"
	".globl ctx_jump\n"
	".hidden ctx_jump\n"
	".type ctx_jump, @function\n"
	"ctx_jump:\n"
	"	pushq %rbp\n"
	"	pushq %rbx\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbx\n"
	"	popq %rbp\n"
	"	popq %rcx\n"
	"	jmpq *%rcx\n"
	".size ctx_jump, . - ctx_jump\n"
	".p2align 4\n"
	".globl ctx_begin\n"
	".hidden ctx_begin\n"
	".type ctx_begin, @function\n"
	"ctx_begin:\n"
	"	.cfi_startproc\n"
	"	.cfi_undefined rip\n"
	"	movq %r12, %rdi\n"
	"	call ctx_main\n"
	"	ud2\n"
	"	.cfi_endproc\n"
	".size ctx_begin, . - ctx_begin\n");

static void *ctx_prepare(void *top, struct co *co)
{
	void **sp = top;

	sp -= 2; /* aligned to 16 at the call in ctx_begin; zeros end stack walks */
	*--sp = (void *)ctx_begin;
	*--sp = NULL; /* rbp: ends frame-pointer walks */
	*--sp = NULL; /* rbx */
	*--sp = co;   /* r12 */
	*--sp = NULL; /* r13 */
	*--sp = NULL; /* r14 */
	*--sp = NULL; /* r15 */
	return sp;
}
#elif defined(__aarch64__)
__asm__(".text\n"
	".p2align 4\n"
	".globl ctx_jump\n"
	".hidden ctx_jump\n"
	".type ctx_jump, %function\n"
	"ctx_jump:\n"
	"	sub sp, sp, #160\n"
	"	stp x19, x20, [sp, #0]\n"
	"	stp x21, x22, [sp, #16]\n"
	"	stp x23, x24, [sp, #32]\n"
	"	stp x25, x26, [sp, #48]\n"
	"	stp x27, x28, [sp, #64]\n"
	"	stp x29, x30, [sp, #80]\n"
	"	stp d8, d9, [sp, #96]\n"
	"	stp d10, d11, [sp, #112]\n"
	"	stp d12, d13, [sp, #128]\n"
	"	stp d14, d15, [sp, #144]\n"
	"	mov x9, sp\n"
	"	str x9, [x0]\n"
	"	mov sp, x1\n"
	"	ldp x19, x20, [sp, #0]\n"
	"	ldp x21, x22, [sp, #16]\n"
	"	ldp x23, x24, [sp, #32]\n"
	"	ldp x25, x26, [sp, #48]\n"
	"	ldp x27, x28, [sp, #64]\n"
	"	ldp x29, x30, [sp, #80]\n"
	"	ldp d8, d9, [sp, #96]\n"
	"	ldp d10, d11, [sp, #112]\n"
	"	ldp d12, d13, [sp, #128]\n"
	"	ldp d14, d15, [sp, #144]\n"
	"	add sp, sp, #160\n"
	"	br x30\n"
	".size ctx_jump, . - ctx_jump\n"
	".p2align 4\n"
	".globl ctx_begin\n"
	".hidden ctx_begin\n"
	".type ctx_begin, %function\n"
	"ctx_begin:\n"
	"	.cfi_startproc\n"
	"	.cfi_undefined x30\n"
	"	mov x0, x19\n"
	"	bl ctx_main\n"
	"	brk #1\n"
	"	.cfi_endproc\n"
	".size ctx_begin, . - ctx_begin\n");

static void *ctx_prepare(void *top, struct co *co)
{
	void **sp = (void **)((char *)top - 160);

	memset(sp, 0, 160);
	sp[0] = co;                 /* x19 */
	sp[11] = (void *)ctx_begin; /* x30 */
	return sp;
}
#else
#error "drover has a context switch for x86-64 and aarch64 only"
#endif

/* What a stack does first when control comes back to it. */
static inline void ctx_arrived(struct co_ctx *here attr_unused)
{
#ifdef CO_ASAN
	struct co_ctx *left = co_thread.left;

	__sanitizer_finish_switch_fiber(here->fake_stack, &left->bottom, &left->size);
#endif
}

/* `ends`: nothing on the stack that is left is needed again, so ASan may drop its fake frames. */
static inline void ctx_switch(struct co_ctx *from, struct co_ctx *to, bool ends attr_unused)
{
#ifdef CO_ASAN
	co_thread.left = from;
	from->fake_stack = NULL;
	__sanitizer_start_switch_fiber(ends ? NULL : &from->fake_stack, to->bottom, to->size);
#endif
#ifdef CO_TSAN
	__tsan_switch_to_fiber(to->fiber, 0);
#endif
	ctx_jump(&from->sp, to->sp);
	ctx_arrived(from);
}

static inline struct co_ctx *ctx_of(struct co *co)
{
	return co ? &co->ctx : &co_thread.main;
}

void ctx_main(struct co *co)
{
	ctx_arrived(&co->ctx);
	for (;;) {
		co->fn(co->arg);
		co->ended = true;
		co_thread.cur = co->caller;
		ctx_switch(&co->ctx, ctx_of(co->caller), true);
	}
}

static struct co *stack_new(void)
{
	const size_t size = CO_STACK_SIZE + CO_GUARD_SIZE;
	struct co *co;
	char *map, *top;

	if (mem_fault())
		return NULL;
	map = mmap(NULL, size, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	if (map == MAP_FAILED)
		return NULL;
	if (mprotect(map, CO_GUARD_SIZE, PROT_NONE)) {
		munmap(map, size);
		return NULL;
	}
	top = map + size - align_up(sizeof(struct co), 64);
	co = (struct co *)top;
	*co = (struct co){.map = map,
		.ctx = {.bottom = map + CO_GUARD_SIZE,
			.size = (size_t)(top - map) - CO_GUARD_SIZE}};
	co->ctx.sp = ctx_prepare(top, co);
#ifdef CO_TSAN
	co->ctx.fiber = __tsan_create_fiber(0);
#endif
#ifdef VALGRIND_STACK_REGISTER
	co->valgrind_id = VALGRIND_STACK_REGISTER(map + CO_GUARD_SIZE, map + size);
#endif
	return co;
}

static void stack_free(struct co *co)
{
	const size_t size = CO_STACK_SIZE + CO_GUARD_SIZE;
	void *map = co->map;

#ifdef CO_TSAN
	__tsan_destroy_fiber(co->ctx.fiber);
#endif
#ifdef VALGRIND_STACK_DEREGISTER
	VALGRIND_STACK_DEREGISTER(co->valgrind_id);
#endif
#ifdef CO_ASAN
	__asan_unpoison_memory_region(map, size);
#endif
	munmap(map, size);
}

bool runtime_on_valgrind(void)
{
#ifdef RUNNING_ON_VALGRIND
	return RUNNING_ON_VALGRIND;
#else
	return false;
#endif
}

static struct co *pool_get(void)
{
	struct co *co = co_thread.pool;

	if (!co)
		return stack_new();
	co_thread.pool = co->inbox_next;
	co_thread.pooled--;
	return co;
}

static void pool_put(struct co *co)
{
	if (co_thread.pooled >= CO_POOL_MAX) {
		stack_free(co);
		return;
	}
	co->inbox_next = co_thread.pool;
	co_thread.pool = co;
	co_thread.pooled++;
}

void runtime_free_stacks(void)
{
	struct co *co;

	while ((co = co_thread.pool)) {
		co_thread.pool = co->inbox_next;
		stack_free(co);
	}
	co_thread.pooled = 0;
}

void runtime_resume(struct co *co)
{
	struct co *caller = co_thread.cur;

#ifdef CO_TSAN
	if (!caller)
		co_thread.main.fiber = __tsan_get_current_fiber();
#endif
	co->caller = caller;
	co_thread.cur = co;
	ctx_switch(ctx_of(caller), &co->ctx, false);
	if (co->ended) {
		co->ring->coroutines--;
		pool_put(co);
	}
}

int co_start(co_fn *fn, void *arg)
{
	struct ring *ring = co_thread.ring;
	struct co *co;
	int r;

	if (unlikely(!ring)) {
		r = ring_get(&ring, NULL);
		if (r)
			return r;
	}
	co = pool_get();
	if (!co)
		return -ENOMEM;
	co->ring = ring;
	co->fn = fn;
	co->arg = arg;
	co->op = NULL;
	co->ended = false;
	ring->coroutines++;
	runtime_resume(co);
	if (unlikely(ring->fd_exposed) && !ring->turning && !co_thread.cur)
		ring_note_work(ring);
	return 0;
}

struct co *co_self(void)
{
	return co_thread.cur;
}

void co_yield (void)
{
	struct co *co = co_thread.cur;

	assert(co);
	co_thread.cur = co->caller;
	ctx_switch(&co->ctx, ctx_of(co->caller), false);
}

void co_wake(struct co *co)
{
	struct ring *ring = co->ring;

	if (ring != co_thread.ring) {
		ring_post(ring, co);
		return;
	}
	list_add_tail(&ring->ready, &co->ready);
	if (unlikely(ring->fd_exposed) && !ring->turning && !co_thread.cur)
		ring_note_work(ring);
}

void co_pause(void)
{
	co_wake(co_thread.cur);
	co_yield ();
}
