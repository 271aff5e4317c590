/* SPDX-License-Identifier: MIT */
/*
 * An image served from an epoll loop, with drover.h alone: embed IMAGE FORMAT SOCKET
 *
 * Clients of the Unix socket send lines: `r OFFSET` is answered with the 512 bytes there in
 * hexadecimal, `w OFFSET BYTE` fills them, `f` flushes, `q` ends the server. Each has one
 * request at a time. The loop never waits for the image: its descriptor is in the same epoll set.
 */
#include <drover.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define STRICT drover_trust(DROVER_TRUST_STRICT)
enum { SECTOR = 512, CLIENTS = 64 };

struct client {
	int fd, busy; /* fd -1: gone */
	char kind, line[64];
	size_t used;
	unsigned char data[SECTOR];
};

static struct drover_queue *queue;
static int epoll_fd, listen_fd, quit, clients;

static void watch(int fd, uint32_t events, void *what)
{
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd,
		&(struct epoll_event){.events = events, .data.ptr = what});
}

static void client_new(void)
{
	int fd = accept(listen_fd, NULL, NULL);
	struct client *c = clients < CLIENTS ? calloc(1, sizeof(*c)) : NULL;

	if (!c || fd < 0) {
		close(fd);
		return free(c);
	}
	clients++;
	c->fd = fd;
	watch(fd, EPOLLIN | EPOLLET, c);
}

static void client_end(struct client *c)
{
	close(c->fd);
	c->fd = -1;
	if (!c->busy && clients--) /* else its buffer is in use, and freed with the result */
		free(c);
}

/* Sends one line's request; there is a slot for every client. */
static void execute(struct client *c)
{
	struct drover_slot *slot = drover_queue_get(queue);
	char *rest;
	unsigned long long off = strtoull(c->line + 1, &rest, 10);

	c->busy = 1;
	if (c->kind == 'f')
		return drover_slot_flush(slot, c);
	if (c->kind == 'r')
		return drover_slot_read(slot, off, c->data, SECTOR, c);
	memset(c->data, (int)strtoul(rest, NULL, 10), SECTOR);
	drover_slot_write(slot, off, c->data, SECTOR, 0, c);
}

/* Goes on with a client until it has a request in flight, is gone, or has sent no whole line. */
static void client_go(struct client *c)
{
	while (!c->busy && c->fd >= 0) {
		char *end = memchr(c->line, '\n', c->used);

		if (!end) {
			size_t room = sizeof(c->line) - c->used;
			ssize_t n = recv(c->fd, c->line + c->used, room, MSG_DONTWAIT);

			if (n <= 0) /* nothing yet, or closed, or too long a line */
				return n ? (void)0 : client_end(c);
			c->used += (size_t)n;
			continue;
		}
		c->kind = c->line[0];
		quit |= c->kind == 'q';
		if (c->kind == 'r' || c->kind == 'w' || c->kind == 'f')
			execute(c);
		c->used -= (size_t)(end + 1 - c->line);
		memmove(c->line, end + 1, c->used);
	}
}

static void answer(struct client *c, int result)
{
	char text[2 * SECTOR + 32];
	int n = snprintf(text, sizeof(text), "%c %d ", c->kind, result);

	for (int i = 0; c->kind == 'r' && !result && i < SECTOR; i++)
		n += snprintf(text + n, sizeof(text) - (size_t)n, "%02x", c->data[i]);
	text[n++] = '\n';
	c->busy = 0;
	if (c->fd < 0 || send(c->fd, text, (size_t)n, MSG_NOSIGNAL) != n)
		return client_end(c);
	client_go(c);
}

int main(int argc, char **argv)
{
	struct drover_open_opts opts = DROVER_INIT(struct drover_open_opts);
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct drover_result done[CLIENTS];
	struct epoll_event ev[16];
	struct drover_image *img;
	struct drover_error err = {0, "usage: embed IMAGE FORMAT SOCKET"};

	opts.flags = DROVER_OPEN_RDWR;
	opts.format = argc == 4 ? argv[2] : NULL;
	if (argc != 4 || drover_open(argv[1], &opts, STRICT, &img, &err) ||
		drover_queue_new(img, NULL, &queue, &err))
		return fprintf(stderr, "embed: %s\n", err.text), 1;
	strncpy(addr.sun_path, argv[3], sizeof(addr.sun_path) - 1);
	listen_fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(listen_fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(listen_fd, 64))
		return perror("embed: the socket"), 1;
	epoll_fd = epoll_create1(0);
	watch(listen_fd, EPOLLIN, &listen_fd);
	watch(drover_queue_fd(queue), EPOLLIN, queue);
	while (!quit) {
		int n = epoll_wait(epoll_fd, ev, 16, -1);

		for (int i = 0; i < n; i++)
			if (ev[i].data.ptr == &listen_fd)
				client_new();
			else if (ev[i].data.ptr != queue)
				client_go(ev[i].data.ptr);
		/* Sends what clients asked for and takes what is done. Answers may ask again. */
		while ((n = drover_queue_reap(queue, done, 0, CLIENTS, 0)) > 0)
			for (int i = 0; i < n; i++)
				answer(done[i].user, done[i].result);
	}
	drover_queue_free(queue);
	return drover_close(img, &err) ? fprintf(stderr, "embed: %s\n", err.text), 1 : 0;
}
