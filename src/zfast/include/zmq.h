/* Stands in for libzmq's zmq.h, which pyzmq's wheels do not ship: just what pyzmq's Cython API
 * (its .pxd files and zmq_compat.h) names at compile time. The functions themselves are resolved
 * at import, see ../_libzmq.h. The values are part of libzmq's stable ABI since 4.2. */
#pragma once
#include <stddef.h>

#define ZMQ_VERSION 40305
#define ZMQ_VERSION_MAJOR 4
#define ZMQ_VERSION_MINOR 3

typedef int zmq_fd_t;

typedef struct zmq_msg_t {
  _Alignas(void *) unsigned char _[64];
} zmq_msg_t;

typedef struct zmq_pollitem_t {
  void *socket;
  zmq_fd_t fd;
  short events;
  short revents;
} zmq_pollitem_t;

#define ZMQ_POLLIN 1
#define ZMQ_POLLOUT 2
#define ZMQ_DONTWAIT 1
#define ZMQ_SNDMORE 2
#define ZMQ_SRCFD 2
