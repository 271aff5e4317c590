/* SPDX-License-Identifier: MIT */
/* Coroutines: order of running, wakes before yields, registers across switches, failing stacks. */
#include "base/co.h"
#include "base/mem.h"
#include "base/ring.h"
#include "tests/unit/unit.h"

#include <pthread.h>
#include <sched.h>

static char order[64];

static void note(char c)
{
	size_t n = strlen(order);

	assert_true(n + 1 < sizeof(order));
	order[n] = c;
	order[n + 1] = '\0';
}

static int setup(void **state)
{
	order[0] = '\0';
	return 0;
}

static int teardown(void **state)
{
	ring_free(ring_self());
	return 0;
}

static void run_all(void)
{
	while (ring_turn(ring_self(), 0) > 0)
		;
}

/* --- start and yield --- */

static void inner(void *arg)
{
	note('c');
	co_yield ();
	note('e');
}

static struct co *yielder_self;

static void yielder(void *arg)
{
	yielder_self = co_self();
	note('1');
	co_yield ();
	note('2');
	co_yield ();
	note('3');
}

static void test_start_runs_until_first_yield(void **state)
{
	assert_null(co_self());
	assert_int_equal(co_start(yielder, NULL), 0);
	assert_null(co_self());
	assert_string_equal(order, "1");
	co_wake(yielder_self);
	assert_string_equal(order, "1"); /* a wake never runs it inside the call */
	run_all();
	assert_string_equal(order, "12");
	co_wake(yielder_self);
	run_all();
	assert_string_equal(order, "123");
}

static struct co *inner_co;

static void inner_keeps(void *arg)
{
	inner_co = co_self();
	inner(arg);
}

static void outer_keeps(void *arg)
{
	struct co *self = co_self();

	note('b');
	assert_int_equal(co_start(inner_keeps, NULL), 0);
	assert_ptr_equal(co_self(), self);
	note('d');
}

static void test_start_inside_a_coroutine(void **state)
{
	note('a');
	assert_int_equal(co_start(outer_keeps, NULL), 0);
	assert_string_equal(order, "abcd");
	co_wake(inner_co);
	run_all();
	assert_string_equal(order, "abcde");
}

static void pauser(void *arg)
{
	const char *name = arg; /* one letter */

	for (int i = 0; i < 3; i++) {
		note(*name);
		co_pause();
	}
}

static void test_pause_gives_way_in_turn(void **state)
{
	char x = 'x', y = 'y';

	assert_int_equal(co_start(pauser, &x), 0);
	assert_int_equal(co_start(pauser, &y), 0);
	run_all();
	assert_string_equal(order, "xyxyxy");
}

static void wakes_itself(void *arg)
{
	co_wake(co_self());
	note('w');
	co_yield ();
	note('z');
}

static void test_wake_before_yield(void **state)
{
	assert_int_equal(co_start(wakes_itself, NULL), 0);
	assert_string_equal(order, "w");
	run_all();
	assert_string_equal(order, "wz");
}

/* --- state across switches --- */

struct mix {
	uint64_t seed, ret;
	double fret;
};

/* Keeps many values live across the switch, so that callee-saved registers hold some of them. */
static void mixer(void *arg)
{
	struct mix *m = arg;
	uint64_t a = m->seed, b = a * 3, c = a * 5, d = a * 7, e = a * 11, f = a * 13, g = a * 17;
	double x = (double)a, y = x / 3;

	for (int i = 0; i < 50; i++) {
		co_pause();
		a += b;
		b ^= c;
		c += d;
		d ^= e;
		e += f;
		f ^= g;
		g += a;
		x += y;
		y = y * 0.75 + 1;
	}
	m->ret = a ^ b ^ c ^ d ^ e ^ f ^ g;
	m->fret = x;
}

static int mix_alone(void *arg)
{
	mixer(arg);
	return 0;
}

static void test_values_survive_switches(void **state)
{
	enum { N = 40 };
	struct mix together[N], alone[N];

	for (uint64_t i = 0; i < N; i++)
		together[i] = alone[i] = (struct mix){.seed = i * 0x9e3779b97f4a7c15u + 1};
	for (int i = 0; i < N; i++)
		assert_int_equal(co_start(mixer, &together[i]), 0);
	run_all();
	for (int i = 0; i < N; i++) {
		assert_int_equal(co_run(mix_alone, &alone[i]), 0);
		assert_true(together[i].ret == alone[i].ret);
		assert_true(together[i].fret == alone[i].fret);
	}
}

/* --- stacks --- */

static void deep(int levels, uint64_t *sum)
{
	volatile char frame[1024];

	memset((char *)frame, levels, sizeof(frame));
	if (levels)
		deep(levels - 1, sum);
	*sum += (uint64_t)frame[levels];
}

static void use_stack(void *arg)
{
	deep(60, arg); /* 60 KiB and more of the 128 */
	co_pause();
	deep(60, arg);
}

static void test_stack_holds_60_kib(void **state)
{
	uint64_t a = 0, b = 0;

	assert_int_equal(co_start(use_stack, &a), 0);
	assert_int_equal(co_start(use_stack, &b), 0);
	run_all();
	assert_true(a == b && a == 2 * 60 * 61 / 2);
}

static void count(void *arg)
{
	++*(int *)arg;
	co_pause();
}

/* More coroutines at once than the pool keeps, twice over. */
static void test_thousands(void **state)
{
	int n = 0;

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 2000; i++)
			assert_int_equal(co_start(count, &n), 0);
		run_all();
	}
	assert_int_equal(n, 4000);
}

static void test_no_stack_is_enomem(void **state)
{
	struct ring *ring;
	int n = 0;

	assert_int_equal(ring_get(&ring, NULL), 0);
	mem_fail_at(1, true);
	assert_int_equal(co_start(count, &n), -ENOMEM);
	mem_fail_at(0, false);
	assert_int_equal(n, 0);
	assert_int_equal(co_start(count, &n), 0);
	run_all();
	assert_int_equal(n, 1);
	/* A pooled stack needs no memory. */
	mem_fail_at(1, true);
	assert_int_equal(co_start(count, &n), 0);
	mem_fail_at(0, false);
	run_all();
	assert_int_equal(n, 2);
}

/* --- co_run --- */

static int returns(void *arg)
{
	co_pause();
	return *(int *)arg;
}

static int run_inside(void *arg)
{
	struct co *self = co_self();
	int r = co_run(returns, arg);

	assert_ptr_equal(co_self(), self);
	return r + 1;
}

static void test_run(void **state)
{
	int v = 41;

	assert_int_equal(co_run(returns, &v), 41);
	assert_int_equal(co_run(run_inside, &v), 42);
}

/* --- other threads --- */

struct ping {
	struct co *co;
	int posted;
	int woken;
};

static void *ping_thread(void *arg)
{
	struct ping *p = arg;

	for (int i = 0; i < 2000; i++) {
		while (__atomic_load_n(&p->posted, __ATOMIC_ACQUIRE) == i)
			sched_yield();
		co_wake(p->co);
	}
	return NULL;
}

/* The wake comes sometimes before, sometimes after the yield. */
static int ping_main(void *arg)
{
	struct ping *p = arg;
	pthread_t t;

	p->co = co_self();
	assert_int_equal(pthread_create(&t, NULL, ping_thread, p), 0);
	for (int i = 0; i < 2000; i++) {
		__atomic_store_n(&p->posted, i + 1, __ATOMIC_RELEASE);
		if (i % 7 == 0)
			sched_yield();
		co_yield ();
		p->woken++;
	}
	pthread_join(t, NULL);
	return 0;
}

static void test_wake_from_a_thread(void **state)
{
	struct ping p = {0};

	assert_int_equal(co_run(ping_main, &p), 0);
	assert_int_equal(p.woken, 2000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		unit_test_fixture(test_start_runs_until_first_yield),
		unit_test_fixture(test_start_inside_a_coroutine),
		unit_test_fixture(test_pause_gives_way_in_turn),
		unit_test_fixture(test_wake_before_yield),
		unit_test_fixture(test_values_survive_switches),
		unit_test_fixture(test_stack_holds_60_kib),
		unit_test_fixture(test_thousands),
		unit_test_fixture(test_no_stack_is_enomem),
		unit_test_fixture(test_run),
		unit_test_fixture(test_wake_from_a_thread),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
