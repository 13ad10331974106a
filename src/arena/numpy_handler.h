/* NumPy's memory from the arena, as a handler in front of the one that was set before.
 *
 * Arrays keep the handler that made them, so a handler is never freed. It calls no Python. */
#ifndef ZF_NUMPY_HANDLER_H
#define ZF_NUMPY_HANDLER_H

#include <Python.h>
#include <stdatomic.h>
#include <string.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include "arena.h"

static atomic_size_t zf_threshold_nbytes;

/* What grows past the threshold on the heap is moved to the arena while it is still small;
 * larger ones are left to realloc, which moves pages instead of copying them. */
#define ZF_CROSSING_NBYTES ((size_t)1 << 20)

typedef struct zf_handler {
  PyDataMem_Handler handler;     /* first: the capsule's pointer */
  PyDataMemAllocator before;     /* whom small sizes, and what the arena refuses, go to */
  PyObject *capsule, *before_capsule;
  struct zf_handler *next;
} zf_handler;

static zf_handler *zf_handlers; /* under the GIL */

static void *zf_numpy_malloc(void *ctx, size_t nbytes) {
  PyDataMemAllocator *before = &((zf_handler *)ctx)->before;
  if (nbytes >= atomic_load_explicit(&zf_threshold_nbytes, memory_order_relaxed)) {
    int why;
    void *block = zf_arena_malloc(nbytes, &why);
    if (block) return block;
  }
  return before->malloc(before->ctx, nbytes);
}

/* The system's zeroed pages are lazy: a large calloc is cheaper there than any memset here. */
static void *zf_numpy_calloc(void *ctx, size_t n, size_t nbytes) {
  PyDataMemAllocator *before = &((zf_handler *)ctx)->before;
  return before->calloc(before->ctx, n, nbytes);
}

static void zf_numpy_free(void *ctx, void *address, size_t nbytes) {
  PyDataMemAllocator *before = &((zf_handler *)ctx)->before;
  if (zf_arena_owns(address))
    zf_arena_free(address);
  else
    before->free(before->ctx, address, nbytes);
}

static void *zf_numpy_realloc(void *ctx, void *address, size_t nbytes) {
  PyDataMemAllocator *before = &((zf_handler *)ctx)->before;
  size_t threshold = atomic_load_explicit(&zf_threshold_nbytes, memory_order_relaxed);
  int why;
  if (!address) return zf_numpy_malloc(ctx, nbytes);
  if (zf_arena_owns(address)) {
    void *moved = nbytes >= threshold ? zf_arena_realloc(address, nbytes) : NULL;
    if (moved) return moved;
    size_t old = zf_arena_block_nbytes(address);
    moved = before->malloc(before->ctx, nbytes);
    if (!moved) return NULL;
    memcpy(moved, address, old < nbytes ? old : nbytes);
    zf_arena_free(address);
    return moved;
  }
  void *grown = before->realloc(before->ctx, address, nbytes);
  if (!grown || nbytes < threshold || nbytes > ZF_CROSSING_NBYTES) return grown;
  void *block = zf_arena_malloc(nbytes, &why);
  if (!block) return grown;
  memcpy(block, grown, nbytes);
  before->free(before->ctx, grown, nbytes);
  return block;
}

static int zf_numpy_import(void) { return PyArray_ImportNumPyAPI(); }

/* The handler in front of the one whose capsule this is; -1 and an exception on failure. */
static zf_handler *zf_handler_before(PyObject *before_capsule) {
  for (zf_handler *one = zf_handlers; one; one = one->next)
    if (one->before_capsule == before_capsule) return one;
  PyDataMem_Handler *before = PyCapsule_GetPointer(before_capsule, "mem_handler");
  if (!before) return NULL;
  zf_handler *made = PyMem_RawCalloc(1, sizeof *made);
  if (!made) return (zf_handler *)PyErr_NoMemory();
  strcpy(made->handler.name, "zfast_arena");
  made->handler.version = 1;
  made->handler.allocator = (PyDataMemAllocator){
      made, zf_numpy_malloc, zf_numpy_calloc, zf_numpy_realloc, zf_numpy_free};
  made->before = before->allocator;
  made->capsule = PyCapsule_New(&made->handler, "mem_handler", NULL);
  if (!made->capsule) {
    PyMem_RawFree(made);
    return NULL;
  }
  made->before_capsule = Py_NewRef(before_capsule); /* for ever, as the handler */
  made->next = zf_handlers;
  zf_handlers = made;
  return made;
}

static zf_handler *zf_handler_of(PyObject *capsule) {
  for (zf_handler *one = zf_handlers; one; one = one->next)
    if (one->capsule == capsule) return one;
  return NULL;
}

/* 1: installed; 0: it was; -1: an exception. */
static int zf_numpy_install(void) {
  PyObject *current = PyDataMem_GetHandler();
  if (!current) return -1;
  if (zf_handler_of(current)) {
    Py_DECREF(current);
    return 0;
  }
  zf_handler *handler = zf_handler_before(current);
  Py_DECREF(current);
  if (!handler) return -1;
  PyObject *old = PyDataMem_SetHandler(handler->capsule);
  if (!old) return -1;
  Py_DECREF(old);
  return 1;
}

/* 1: the one before is back; 0: the current handler is not ours; -1: an exception. */
static int zf_numpy_remove(void) {
  PyObject *current = PyDataMem_GetHandler();
  if (!current) return -1;
  zf_handler *handler = zf_handler_of(current);
  Py_DECREF(current);
  if (!handler) return 0;
  PyObject *old = PyDataMem_SetHandler(handler->before_capsule);
  if (!old) return -1;
  Py_DECREF(old);
  return 1;
}

#endif
