/* SPDX-License-Identifier: MIT */
/* Locks: exclusion, order of arrival, hand-over, across rings; the same on the sim engine. */
#include "base/co.h"
#include "base/ring.h"
#include "base/sync.h"
#include "tests/unit/unit.h"

#include <pthread.h>

static char order[64];
static unsigned norder;
static struct co_counter running;

static void note(char c)
{
	assert_true(norder + 1 < sizeof(order));
	order[norder++] = c;
	order[norder] = '\0';
}

static int setup(void **state)
{
	norder = 0;
	order[0] = '\0';
	return 0;
}

static int teardown(void **state)
{
	ring_free(ring_self());
	return 0;
}

static void start(co_fn *fn, void *arg)
{
	co_counter_inc(&running);
	assert_int_equal(co_start(fn, arg), 0);
}

static void run(int (*fn)(void *arg))
{
	assert_int_equal(co_run(fn, NULL), 0);
}

/* --- spin --- */

static struct spin spin;
static unsigned long spun;

static void *spinner(void *arg)
{
	for (int i = 0; i < 20000; i++) {
		spin_lock(&spin);
		spun++;
		spin_unlock(&spin);
	}
	return NULL;
}

static void test_spin(void **state)
{
	pthread_t t[3];

	for (unsigned i = 0; i < ARRAY_SIZE(t); i++)
		assert_int_equal(pthread_create(&t[i], NULL, spinner, NULL), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++)
		pthread_join(t[i], NULL);
	assert_int_equal(spun, 60000);
}

/* --- queue --- */

static struct co_queue queue;

static void queuer(void *arg)
{
	spin_lock(&spin);
	co_queue_wait(&queue, &spin);
	note(*(char *)arg);
	co_counter_dec(&running);
}

static int do_queue(void *arg)
{
	static char names[] = "abcd";

	spin_lock(&spin);
	assert_false(co_queue_wake_one(&queue));
	spin_unlock(&spin);
	for (unsigned i = 0; i < 4; i++)
		start(queuer, &names[i]);
	spin_lock(&spin);
	assert_true(co_queue_wake_one(&queue));
	spin_unlock(&spin);
	co_pause();
	assert_string_equal(order, "a");
	spin_lock(&spin);
	co_queue_wake_all(&queue);
	assert_false(co_queue_wake_one(&queue));
	spin_unlock(&spin);
	co_counter_wait_zero(&running);
	assert_string_equal(order, "abcd");
	return 0;
}

static void test_queue_in_order_of_arrival(void **state)
{
	run(do_queue);
}

/* --- mutex --- */

static struct co_mutex mutex;

static void locker(void *arg)
{
	co_mutex_lock(&mutex);
	note(*(char *)arg);
	co_pause();
	note(*(char *)arg);
	co_mutex_unlock(&mutex);
	co_counter_dec(&running);
}

static int do_mutex(void *arg)
{
	static char names[] = "abc";

	assert_true(co_mutex_trylock(&mutex));
	assert_false(co_mutex_trylock(&mutex));
	for (unsigned i = 0; i < 3; i++)
		start(locker, &names[i]);
	assert_string_equal(order, "");
	co_mutex_unlock(&mutex);
	/* Handed over: nobody gets in between. */
	assert_false(co_mutex_trylock(&mutex));
	co_mutex_lock(&mutex);
	note('z');
	co_mutex_unlock(&mutex);
	co_counter_wait_zero(&running);
	assert_string_equal(order, "aabbccz");
	assert_true(co_mutex_trylock(&mutex));
	co_mutex_unlock(&mutex);
	return 0;
}

static void test_mutex_is_fair(void **state)
{
	run(do_mutex);
}

/* --- rwlock --- */

static struct co_rwlock rw;

static void reader(void *arg)
{
	co_rwlock_rdlock(&rw);
	note(*(char *)arg);
	co_pause();
	co_rwlock_rdunlock(&rw);
	co_counter_dec(&running);
}

static void writer(void *arg)
{
	co_rwlock_wrlock(&rw);
	note(*(char *)arg);
	assert_true(rw.writer && !rw.readers);
	co_pause();
	co_rwlock_wrunlock(&rw);
	co_counter_dec(&running);
}

static int do_rwlock(void *arg)
{
	static char names[] = "rsWtuV";

	start(reader, &names[0]);
	start(reader, &names[1]);
	assert_string_equal(order, "rs"); /* together */
	start(writer, &names[2]);
	start(reader, &names[3]); /* behind the writer that waits */
	start(reader, &names[4]);
	start(writer, &names[5]);
	assert_string_equal(order, "rs");
	co_counter_wait_zero(&running);
	assert_string_equal(order, "rsWtuV");
	return 0;
}

static void test_rwlock_writers_do_not_starve(void **state)
{
	run(do_rwlock);
}

static int do_downgrade(void *arg)
{
	static char names[] = "rsW";

	co_rwlock_wrlock(&rw);
	start(reader, &names[0]);
	start(reader, &names[1]);
	start(writer, &names[2]);
	co_rwlock_downgrade(&rw);
	assert_int_equal(rw.readers, 3); /* the waiting readers came in */
	co_pause();
	co_pause();
	assert_string_equal(order, "rs");
	co_rwlock_rdunlock(&rw);
	co_counter_wait_zero(&running);
	assert_string_equal(order, "rsW");
	return 0;
}

static void test_rwlock_downgrade(void **state)
{
	run(do_downgrade);
}

/* --- counter --- */

static struct co_counter counter;

static void waits_zero(void *arg)
{
	co_counter_wait_zero(&counter);
	note(*(char *)arg);
	co_counter_dec(&running);
}

static int do_counter(void *arg)
{
	static char names[] = "xy";

	co_counter_wait_zero(&counter);
	co_counter_inc(&counter);
	co_counter_inc(&counter);
	start(waits_zero, &names[0]);
	start(waits_zero, &names[1]);
	co_counter_dec(&counter);
	co_pause();
	assert_string_equal(order, "");
	co_counter_dec(&counter);
	co_counter_wait_zero(&running);
	assert_string_equal(order, "xy");
	return 0;
}

static void test_counter(void **state)
{
	run(do_counter);
}

/* --- across rings --- */

static struct co_rwlock shared;
static struct co_mutex outer;
static unsigned long a, b;

static void contender(void *arg)
{
	for (unsigned i = 0; i < 200; i++) {
		if (i % 3) {
			co_rwlock_rdlock(&shared);
			assert_true(a == b);
			if (i % 5 == 0)
				co_pause();
			assert_true(a == b);
			co_rwlock_rdunlock(&shared);
		} else {
			co_mutex_lock(&outer);
			co_rwlock_wrlock(&shared);
			a++;
			if (i % 2)
				co_pause();
			b++;
			if (i % 4) {
				co_rwlock_wrunlock(&shared);
			} else {
				co_rwlock_downgrade(&shared);
				assert_true(a == b);
				co_rwlock_rdunlock(&shared);
			}
			co_mutex_unlock(&outer);
		}
	}
	co_counter_dec(arg);
}

static int contend(void *arg)
{
	struct co_counter mine = {0};

	for (unsigned i = 0; i < 8; i++) {
		co_counter_inc(&mine);
		assert_int_equal(co_start(contender, &mine), 0);
	}
	co_counter_wait_zero(&mine);
	return 0;
}

static void across(enum ring_kind kind)
{
	struct ring_opts opts = {.kind = kind};
	struct ring_thread *t[3];

	a = b = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++)
		assert_int_equal(ring_thread_start(&opts, contend, NULL, &t[i]), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++)
		assert_int_equal(ring_thread_join(t[i]), 0);
	assert_int_equal(a, 3 * 8 * 67);
	assert_int_equal(b, a);
	assert_true(!shared.readers && !shared.writer && !shared.waiters.head);
}

static void test_locks_across_rings(void **state)
{
	if (!unit_without_uring())
		across(RING_IO_URING);
	across(RING_THREADS);
}

static void test_locks_on_sim(void **state)
{
	for (uint64_t seed = 0; seed < 30; seed++) {
		struct ring_opts opts = {.kind = RING_SIM, .seed = seed};
		struct ring *ring;

		a = b = 0;
		assert_int_equal(ring_new(&opts, &ring, NULL), 0);
		run(contend);
		assert_int_equal(a, 8 * 67);
		ring_free(ring);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		unit_test_fixture(test_spin),
		unit_test_fixture(test_queue_in_order_of_arrival),
		unit_test_fixture(test_mutex_is_fair),
		unit_test_fixture(test_rwlock_writers_do_not_starve),
		unit_test_fixture(test_rwlock_downgrade),
		unit_test_fixture(test_counter),
		unit_test_fixture(test_locks_across_rings),
		unit_test_fixture(test_locks_on_sim),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
