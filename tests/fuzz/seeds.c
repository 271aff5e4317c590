/* SPDX-License-Identifier: MIT */
/* Writes the fuzzers' first inputs into a folder: seeds DIR. Nothing of it is in the repository. */
#include "base/co.h"
#include "qcow2/qcow2.h"
#include "tests/crash/setup.h"
#include "tests/fuzz/fuzz.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <zlib.h>
#include <zstd.h>

static const char *dir;

static int put(const char *kind, const char *name, const void *head, size_t nhead, const void *data,
	size_t n)
{
	char path[512];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, kind);
	mkdir(path, 0777);
	snprintf(path, sizeof(path), "%s/%s/%s", dir, kind, name);
	f = fopen(path, "wb");
	if (!f || fwrite(head, 1, nhead, f) != nhead || fwrite(data, 1, n, f) != n || fclose(f)) {
		perror(path);
		return -EIO;
	}
	return 0;
}

static int co_images(void *arg)
{
	static struct fixture f;

	world_init();
	for (unsigned i = 0; i < nconfigs; i++) {
		uint8_t control[FUZZ_CONTROL] = {1, 2, 3};
		struct error err = ERROR_INIT;
		int r;

		if (configs[i].cluster_bits > 12)
			continue; /* big images make slow fuzzing */
		r = co_fixture_make(&configs[i], &f, &err);
		if (r) {
			fprintf(stderr, "seeds: %s\n", err.text);
			return r;
		}
		for (unsigned k = 0; k < 4 && !r; k++) {
			char name[64];

			snprintf(name, sizeof(name), "%s-%u", configs[i].name, k);
			control[0] = (uint8_t)(k * 67 + 3);
			control[8] = (uint8_t)(k + i);
			r = put("image", name, control, sizeof(control), f.image[k % 2],
				f.size[k % 2]);
		}
		fixture_free(&f);
		if (r)
			return r;
	}
	return 0;
}

static int compressed(void)
{
	static const char *const words[] = {"cluster", "table", "refcount", "snapshot"};
	uint8_t plain[4096], packed[8192], head;
	uLongf n = sizeof(packed);
	size_t zn;
	int r;

	for (size_t i = 0; i < sizeof(plain); i++)
		plain[i] = (uint8_t)words[i / 64 % 4][i % 7 % strlen(words[i / 64 % 4])];
	compress(packed, &n, plain, sizeof(plain));
	head = 3 << 1;
	/* raw deflate lies between zlib's 2-byte head and 4-byte tail */
	r = put("compressed", "deflate", &head, 1, packed + 2, n - 6);
	head |= 1;
	zn = ZSTD_compress(packed, sizeof(packed), plain, sizeof(plain), 1);
	return r ? r : put("compressed", "zstd", &head, 1, packed, zn);
}

static int options(void)
{
	static const char *const texts[] = {"\x02"
					    "driver=qcow2,file.filename=a,,b.img,size=1G",
		"\x06"
		"disk.img,l.0=a,l.1.x=b",
		"\x01{\"driver\":\"raw\",\"file\":{\"filename\":\"x\"},\"n\":[1,true,null,2.5]}",
		"\x04"
		"1.5G"};
	int r = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(texts) && !r; i++) {
		char name[16];

		snprintf(name, sizeof(name), "text-%u", i);
		r = put("conf", name, "", 0, texts[i], strlen(texts[i]));
	}
	return r;
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: seeds DIR\n");
		return 2;
	}
	dir = argv[1];
	mkdir(dir, 0777);
	return co_run(co_images, NULL) || compressed() || options() ? 1 : 0;
}
