/* SPDX-License-Identifier: MIT */
/*
 * Image locks: byte-range locks that keep two writers off one image, shared with every program
 * that follows QEMU's scheme.
 *
 * All locks are OFD read locks on single bytes: byte 100+n says "permission n is held", byte 200+n
 * "permission n is not shared", n being the bit number of enum block_perm. Read locks never refuse
 * each other, so a newcomer first takes its bytes and then asks, by a query for a write lock,
 * whether anybody else holds a byte that contradicts: 200+n for what it needs, 100+n for what it
 * does not share. Taking before asking means that of two newcomers at least one sees the other.
 */
#include "block/internal.h"
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PERM_BASE     100
#define UNSHARED_BASE 200
#define PERM_COUNT    5

static const char *const perm_names[PERM_COUNT] = {
	"consistent read", "write", "write unchanged", "resize", "change children"};

static int set_byte(int fd, off_t byte, short type)
{
	struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
	int r;

	do
		r = fcntl(fd, F_OFD_SETLK, &fl);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

/* 1: somebody else holds the byte. */
static int query_byte(int fd, off_t byte)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

	if (fcntl(fd, F_OFD_GETLK, &fl) < 0)
		return -errno;
	return fl.l_type != F_UNLCK;
}

static int take_bytes(int fd, off_t base, uint32_t have, uint32_t want)
{
	for (unsigned i = 0; i < PERM_COUNT; i++) {
		int r;

		if (!(want & ~have & (1u << i)))
			continue;
		r = set_byte(fd, base + i, F_RDLCK);
		if (r)
			return r;
	}
	return 0;
}

static void drop_bytes(int fd, off_t base, uint32_t have, uint32_t want)
{
	for (unsigned i = 0; i < PERM_COUNT; i++)
		if (have & ~want & (1u << i))
			set_byte(fd, base + i, F_UNLCK);
}

void block_lock_drop(int fd, struct block_lock *held)
{
	struct flock fl = {.l_type = F_UNLCK,
		.l_whence = SEEK_SET,
		.l_start = PERM_BASE,
		.l_len = UNSHARED_BASE + PERM_COUNT - PERM_BASE};

	if (held->perm || held->unshared)
		fcntl(fd, F_OFD_SETLK, &fl);
	*held = (struct block_lock){0};
}

/* --- who holds the file --- */

static bool same_file(const char *path, const struct stat *st)
{
	struct stat other;

	return !stat(path, &other) && other.st_dev == st->st_dev && other.st_ino == st->st_ino;
}

/* Does the process have locks of its own on this file behind any of its descriptors? */
static bool process_locks(const char *pid, const struct stat *st)
{
	char dir[64], path[128], line[256];
	struct dirent *e;
	bool found = false;
	DIR *d;

	snprintf(dir, sizeof(dir), "/proc/%.20s/fd", pid);
	d = opendir(dir);
	if (!d)
		return false;
	while (!found && (e = readdir(d))) {
		FILE *f;

		snprintf(path, sizeof(path), "%s/%.20s", dir, e->d_name);
		if (!isdigit((unsigned char)e->d_name[0]) || !same_file(path, st))
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/fdinfo/%.20s", pid, e->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		while (!found && fgets(line, sizeof(line), f))
			found = !strncmp(line, "lock:", 5) && strstr(line, "OFDLCK");
		fclose(f);
	}
	closedir(d);
	return found;
}

/* OFD locks have no process in the kernel's table, so every process we may look into is asked. */
static bool find_holder(int fd, char *text, size_t size)
{
	char self[24], path[64], comm[64] = "";
	struct dirent *e;
	struct stat st;
	bool found = false;
	DIR *d;

	if (fstat(fd, &st) || !(d = opendir("/proc")))
		return false;
	snprintf(self, sizeof(self), "%d", (int)getpid());
	while (!found && (e = readdir(d))) {
		FILE *f;

		if (!isdigit((unsigned char)e->d_name[0]) || !strcmp(e->d_name, self) ||
			!process_locks(e->d_name, &st))
			continue;
		found = true;
		snprintf(path, sizeof(path), "/proc/%.20s/comm", e->d_name);
		f = fopen(path, "re");
		if (f) {
			if (fgets(comm, sizeof(comm), f))
				comm[strcspn(comm, "\n")] = 0;
			fclose(f);
		}
		snprintf(text, size, " Process %.20s (%s) holds it.", e->d_name,
			*comm ? comm : "unknown");
	}
	closedir(d);
	return found;
}

static int conflict(int fd, const char *name, unsigned perm, bool shared, struct error *err)
{
	char holder[128] = "";

	if (err)
		find_holder(fd, holder, sizeof(holder));
	return error_set(err, -EAGAIN,
		"Failed to get %s\"%s\" lock\nIs another process using the image [%s]?%s",
		shared ? "shared " : "", perm_names[perm], name, holder);
}

static int check_others(
	int fd, const char *name, uint32_t perm, uint32_t unshared, struct error *err)
{
	for (unsigned i = 0; i < PERM_COUNT; i++) {
		int r;

		if (perm & (1u << i)) {
			r = query_byte(fd, UNSHARED_BASE + i);
			if (r > 0)
				return conflict(fd, name, i, false, err);
			if (r < 0)
				return error_set_errno(err, r, "Failed to lock '%s'", name);
		}
		if (unshared & (1u << i)) {
			r = query_byte(fd, PERM_BASE + i);
			if (r > 0)
				return conflict(fd, name, i, true, err);
			if (r < 0)
				return error_set_errno(err, r, "Failed to lock '%s'", name);
		}
	}
	return 0;
}

int block_lock_set(int fd, const char *name, struct block_lock *held, uint32_t perm,
	uint32_t shared, struct error *err)
{
	uint32_t unshared = BLOCK_PERM_ALL & ~shared;
	int r = take_bytes(fd, PERM_BASE, held->perm, perm);

	if (!r)
		r = take_bytes(fd, UNSHARED_BASE, held->unshared, unshared);
	if (r)
		error_set_errno(err, r,
			"Failed to lock '%s' (locking=off opens it without image locks)", name);
	else
		r = check_others(fd, name, perm & ~held->perm, unshared & ~held->unshared, err);
	if (r) {
		drop_bytes(fd, PERM_BASE, perm, held->perm);
		drop_bytes(fd, UNSHARED_BASE, unshared, held->unshared);
		return r;
	}
	drop_bytes(fd, PERM_BASE, held->perm, perm);
	drop_bytes(fd, UNSHARED_BASE, held->unshared, unshared);
	held->perm = perm;
	held->unshared = unshared;
	return 0;
}
