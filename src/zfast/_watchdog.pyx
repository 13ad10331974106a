# cython: language_level=3
"""Ends this process, and removes what its parent left, as soon as the parent is dead.

A C thread of its own: it needs neither the GIL nor a healthy interpreter, so that a worker deep
in a long computation does not outlive a driver that was killed with -9.
"""

import os

from libc.stdlib cimport free
from libc.string cimport strdup


cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <sys/syscall.h>
    #ifndef SYS_pidfd_open
    #define SYS_pidfd_open 434
    #endif
    #endif

    typedef struct {
      pid_t parent;
      int pidfd; /* -1 where the system has none: then the parent's pid is polled */
      char *folder;
    } zf_watch;

    /* The folder holds sockets and a lock file, no folders. */
    #include <dirent.h>
    static void zf_remove_folder(const char *folder) {
      DIR *listing = opendir(folder);
      if (!listing) return;
      struct dirent *entry;
      while ((entry = readdir(listing))) {
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
          unlinkat(dirfd(listing), entry->d_name, 0);
      }
      closedir(listing);
      rmdir(folder);
    }

    static void zf_parent_died(const zf_watch *watch) {
      if (watch->folder[0]) zf_remove_folder(watch->folder);
      /* What this process has started ends with it, if the group is its own. */
      if (getpgrp() == getpid()) kill(0, SIGKILL);
      _exit(1);
    }

    static void *zf_watch_thread(void *argument) {
      zf_watch *watch = (zf_watch *)argument;
      for (;;) {
        if (getppid() != watch->parent) zf_parent_died(watch);
        if (watch->pidfd >= 0) {
          struct pollfd item = {watch->pidfd, POLLIN, 0};
          poll(&item, 1, -1);
        } else {
          usleep(200000);
        }
      }
      return NULL;
    }

    static int zf_watch_parent(int parent, char *folder) {
      zf_watch *watch = (zf_watch *)malloc(sizeof(zf_watch));
      if (!watch) return ENOMEM;
      watch->parent = parent;
      watch->folder = folder;
      watch->pidfd = -1;
    #ifdef __linux__
      watch->pidfd = (int)syscall(SYS_pidfd_open, parent, 0);
    #endif
      if (getppid() != parent) zf_parent_died(watch);
      /* Signals belong to the interpreter's threads. */
      sigset_t all, before;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &before);
      pthread_t thread;
      int rc = pthread_create(&thread, NULL, zf_watch_thread, watch);
      pthread_sigmask(SIG_SETMASK, &before, NULL);
      if (rc == 0) pthread_detach(thread);
      return rc;
    }
    """
    int zf_watch_parent(int parent, char *folder)


def watch_parent(int parent_pid, folder: str = "") -> None:
    """End when process ``parent_pid``, this one's parent, ends.

    A process that leads a group is killed with it; another one exits with status 1.

    Args:
        parent_pid: The parent's pid. If it is not the parent (any more), this process ends now.
        folder: A folder to remove then, with the files in it; empty for none.

    Threads: call once. A forked child is not watched over.
    """
    cdef bytes encoded = os.fsencode(folder)
    cdef char *copy = strdup(encoded)
    if copy is NULL:
        raise MemoryError
    cdef int rc = zf_watch_parent(parent_pid, copy)
    if rc:
        free(copy)
        raise OSError(rc, f"cannot start the watchdog thread: {os.strerror(rc)}")
