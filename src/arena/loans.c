/* What peers lend this process, and the forked children that inherit it.
 *
 * This process's own memory needs no book of children (arena.c). But a child also inherits its
 * views of other processes' memory, and they do not know of it: a loan must not be given back
 * while a child may read it. So each fork under a loan leaves a pipe. The child, and whatever it
 * forks, holds one end and never touches it; when the last of them is gone, or runs another
 * program, the other end says so. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "arena.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct zf_child {
  uint64_t fork; /* which fork it was, from 1 */
  int fd;
  struct zf_child *next;
} zf_child;

static pthread_mutex_t book = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t registered = PTHREAD_ONCE_INIT;
static zf_child *children;
static uint64_t n_loans, n_forks;
static uint64_t lost_fork; /* the last one without a pipe: its child counts as alive for ever */
static int childs_end = -1;

static void before_fork(void) {
  pthread_mutex_lock(&book);
  childs_end = -1;
  if (!n_loans) return;
  n_forks++;
  int ends[2] = {-1, -1};
  zf_child *child = malloc(sizeof *child);
  if (!child || pipe(ends)) {
    free(child);
    lost_fork = n_forks;
    return;
  }
  fcntl(ends[0], F_SETFD, FD_CLOEXEC);
  fcntl(ends[1], F_SETFD, FD_CLOEXEC);
  childs_end = ends[1];
  *child = (zf_child){n_forks, ends[0], children};
  children = child;
}

static void after_fork_in_parent(void) {
  if (childs_end >= 0) close(childs_end);
  pthread_mutex_unlock(&book);
}

static void after_fork_in_child(void) {
  for (zf_child *child = children, *next; child; child = next) {
    next = child->next;
    close(child->fd);
    free(child);
  }
  children = NULL;
  pthread_mutex_unlock(&book);
}

static void watch_forks(void) {
  if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child))
    abort(); /* no memory for three pointers */
}

uint64_t zf_loan_begin(void) {
  pthread_once(&registered, watch_forks);
  pthread_mutex_lock(&book);
  n_loans++;
  uint64_t begun = n_forks;
  pthread_mutex_unlock(&book);
  return begun;
}

void zf_loan_end(void) {
  pthread_mutex_lock(&book);
  n_loans--;
  pthread_mutex_unlock(&book);
}

int zf_loan_has_children(uint64_t begun) {
  pthread_mutex_lock(&book);
  int alive = lost_fork > begun;
  for (zf_child **link = &children, *child; !alive && (child = *link);) {
    struct pollfd end = {child->fd, POLLIN, 0};
    if (child->fork > begun) {
      if (poll(&end, 1, 0) == 1 && (end.revents & POLLHUP)) {
        *link = child->next;
        close(child->fd);
        free(child);
        continue;
      }
      alive = 1;
    }
    link = &child->next;
  }
  pthread_mutex_unlock(&book);
  return alive;
}
