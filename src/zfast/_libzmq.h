/* libzmq's functions, taken at import from the very library that pyzmq loaded, and the list of
 * buffers that libzmq has let go of.
 *
 * pyzmq's wheels bundle libzmq under a hashed name and without a header, so there is nothing to
 * link against; two copies of libzmq must never share a socket, so there is nothing of our own to
 * bring either. dlopen(RTLD_NOLOAD) on pyzmq's extension searches its dependencies as well. */
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "zmq.h"

typedef void(zf_free_fn)(void *data, void *hint);

#define ZF_API(X)                                                                             \
  X(void, zmq_version, (int *a, int *b, int *c), (a, b, c))                                   \
  X(int, zmq_msg_init, (zmq_msg_t * m), (m))                                                  \
  X(int, zmq_msg_init_size, (zmq_msg_t * m, size_t n), (m, n))                                \
  X(int, zmq_msg_init_data, (zmq_msg_t * m, void *d, size_t n, zf_free_fn *f, void *h),       \
    (m, d, n, f, h))                                                                          \
  X(int, zmq_msg_send, (zmq_msg_t * m, void *s, int flags), (m, s, flags))                    \
  X(int, zmq_msg_recv, (zmq_msg_t * m, void *s, int flags), (m, s, flags))                    \
  X(int, zmq_msg_move, (zmq_msg_t * to, zmq_msg_t * from), (to, from))                        \
  X(int, zmq_msg_close, (zmq_msg_t * m), (m))                                                 \
  X(void *, zmq_msg_data, (zmq_msg_t * m), (m))                                               \
  X(size_t, zmq_msg_size, (const zmq_msg_t *m), (m))                                          \
  X(int, zmq_msg_more, (const zmq_msg_t *m), (m))                                             \
  X(int, zmq_msg_get, (const zmq_msg_t *m, int property), (m, property))                      \
  X(const char *, zmq_msg_gets, (const zmq_msg_t *m, const char *property), (m, property))    \
  X(int, zmq_poll, (zmq_pollitem_t * i, int n, long ms), (i, n, ms))                          \
  X(int, zmq_errno, (void), ())                                                               \
  X(const char *, zmq_strerror, (int e), (e))

#define X(ret, name, params, args)          \
  static ret(*zf_##name##_p) params;        \
  static inline ret zf_##name params { return zf_##name##_p args; }
ZF_API(X)
#undef X

/* Fill the table. NULL when all is well, else the first name that is missing ("" when pyzmq's
 * extension itself is not loaded from that path). */
static const char *zf_bind(const char *extension_path) {
  void *library = dlopen(extension_path, RTLD_NOW | RTLD_NOLOAD);
  if (!library) return "";
#define X(ret, name, params, args) \
  if (!(*(void **)(&zf_##name##_p) = dlsym(library, #name))) return #name;
  ZF_API(X)
#undef X
  return NULL; /* the handle is kept: the functions must stay mapped */
}

/* ---- buffers lent to libzmq ----------------------------------------------------------------
 *
 * A lent buffer is a Python buffer whose memory libzmq reads without a copy. libzmq gives it back
 * by calling zf_on_release from one of its I/O threads, without the GIL: there it may only be put
 * on a list. Whoever holds the GIL next drains the list; a reaper thread waits for entries, so
 * that an idle sender pins nothing. */

typedef struct zf_tracker { /* one per message that somebody waits for; freed with its last loan */
  atomic_int refs;
  atomic_int lent;
} zf_tracker;

typedef struct zf_loan {
  struct zf_loan *next;
  zf_tracker *tracker; /* or NULL */
  Py_buffer view;
} zf_loan;

static _Atomic(zf_loan *) zf_returned;
static pthread_mutex_t zf_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t zf_cond;
static atomic_long zf_n_lent; /* loans not yet released, for tests and statistics */

static void zf_cond_init(void) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
#ifdef __linux__
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
  pthread_cond_init(&zf_cond, &attributes);
  pthread_condattr_destroy(&attributes);
}

/* This process: glibc's getpid() is a system call each time. */
static pid_t zf_pid;

/* A forked child inherits neither libzmq's threads nor the reaper; its copies of the loans are
 * the parent's to return. */
static void zf_after_fork_in_child(void) {
  zf_pid = getpid();
  pthread_mutex_init(&zf_mutex, NULL);
  zf_cond_init();
  atomic_store(&zf_returned, NULL);
  atomic_store(&zf_n_lent, 0);
}

static void zf_init(void) {
  zf_pid = getpid();
  zf_cond_init();
  pthread_atfork(NULL, NULL, zf_after_fork_in_child);
}

static zf_tracker *zf_tracker_new(void) {
  zf_tracker *tracker = (zf_tracker *)PyMem_RawMalloc(sizeof(zf_tracker));
  if (tracker) {
    atomic_init(&tracker->refs, 1);
    atomic_init(&tracker->lent, 0);
  }
  return tracker;
}

static void zf_tracker_unref(zf_tracker *tracker) {
  if (tracker && atomic_fetch_sub(&tracker->refs, 1) == 1) PyMem_RawFree(tracker);
}

static void zf_wake(void) {
  pthread_mutex_lock(&zf_mutex);
  pthread_cond_broadcast(&zf_cond);
  pthread_mutex_unlock(&zf_mutex);
}

/* Called by libzmq, on its I/O thread or inside zmq_msg_close. No Python here. Only news wakes
 * anybody: a message that is done, or the first entry of an empty list. */
static void zf_on_release(void *data, void *hint) {
  (void)data;
  zf_loan *loan = (zf_loan *)hint;
  zf_tracker *tracker = loan->tracker;
  int is_news = 0;
  if (tracker) {
    is_news = atomic_fetch_sub(&tracker->lent, 1) == 1;
    zf_tracker_unref(tracker);
  }
  zf_loan *head = atomic_load_explicit(&zf_returned, memory_order_relaxed);
  do {
    loan->next = head;
  } while (!atomic_compare_exchange_weak_explicit(&zf_returned, &head, loan, memory_order_release,
                                                  memory_order_relaxed));
  if (is_news || !head) zf_wake();
}

/* Borrow `object`'s buffer into `loan`. 0, or -1 with a Python error set. Needs the GIL. */
static int zf_lend(PyObject *object, zf_tracker *tracker, zf_loan **out) {
  zf_loan *loan = (zf_loan *)PyMem_RawMalloc(sizeof(zf_loan));
  if (!loan) {
    PyErr_NoMemory();
    return -1;
  }
  if (PyObject_GetBuffer(object, &loan->view, PyBUF_SIMPLE) < 0) {
    PyMem_RawFree(loan);
    return -1;
  }
  loan->next = NULL;
  loan->tracker = tracker;
  if (tracker) {
    atomic_fetch_add(&tracker->refs, 1);
    atomic_fetch_add(&tracker->lent, 1);
  }
  atomic_fetch_add(&zf_n_lent, 1);
  *out = loan;
  return 0;
}

/* Release every returned buffer. Needs the GIL; running a buffer's release may run Python. */
static long zf_drain(void) {
  zf_loan *loan = atomic_exchange_explicit(&zf_returned, NULL, memory_order_acquire);
  long released = 0;
  while (loan) {
    zf_loan *next = loan->next;
    PyBuffer_Release(&loan->view);
    PyMem_RawFree(loan);
    released++;
    loan = next;
  }
  atomic_fetch_sub(&zf_n_lent, released);
  return released;
}

/* A message that is sent in several parts is not done between two of them. */
static void zf_tracker_hold(zf_tracker *tracker) { atomic_fetch_add(&tracker->lent, 1); }

static void zf_tracker_unhold(zf_tracker *tracker) {
  if (atomic_fetch_sub(&tracker->lent, 1) == 1) zf_wake();
}

static int zf_tracker_done(zf_tracker *tracker) { return atomic_load(&tracker->lent) == 0; }

static long zf_lent(void) { return atomic_load(&zf_n_lent); }

/* Wait without the GIL until `tracker` is done (or, when NULL, until something was returned), at
 * most `timeout_ms` (negative: for ever). 1 when so, 0 on time-out. */
static int zf_wait(zf_tracker *tracker, long timeout_ms) {
  struct timespec until;
#ifdef __linux__
  clock_gettime(CLOCK_MONOTONIC, &until);
#else
  clock_gettime(CLOCK_REALTIME, &until);
#endif
  until.tv_sec += timeout_ms / 1000;
  until.tv_nsec += (timeout_ms % 1000) * 1000000L;
  if (until.tv_nsec >= 1000000000L) {
    until.tv_sec++;
    until.tv_nsec -= 1000000000L;
  }
  int rc = 0;
  pthread_mutex_lock(&zf_mutex);
  while (!(tracker ? zf_tracker_done(tracker) : atomic_load(&zf_returned) != NULL) && rc == 0) {
    rc = timeout_ms < 0 ? pthread_cond_wait(&zf_cond, &zf_mutex)
                        : pthread_cond_timedwait(&zf_cond, &zf_mutex, &until);
  }
  int done = tracker ? zf_tracker_done(tracker) : atomic_load(&zf_returned) != NULL;
  pthread_mutex_unlock(&zf_mutex);
  return done;
}
