/* PUSH/PULL throughput of libzmq itself, without Python.
 *
 *   stream LIBZMQ receiver MODE NBYTES COUNT ENDPOINT ACK_ENDPOINT
 *   stream LIBZMQ sender   MODE NBYTES COUNT ENDPOINT ACK_ENDPOINT
 *
 * MODE is "single" (one message a payload, allocated for each as libzmq's own perf tools do) or
 * "batched" (payloads packed by hand, length-prefixed, into frames of up to 1 MiB). The receiver
 * reads the first byte of every payload and acknowledges the round with one message. Both read one
 * line from stdin for each round and answer with one JSON line; they end when stdin does.
 *
 * LIBZMQ is loaded at run time, so that this program measures the very library that pyzmq bundles.
 * Its wheel ships no zmq.h: the few names used are declared here, as libzmq 4.x has them.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ZMQ_PULL = 7, ZMQ_PUSH = 8, ZMQ_LINGER = 17, ZMQ_RCVTIMEO = 27, ZMQ_SNDTIMEO = 28 };
enum { ZMQ_LAST_ENDPOINT = 32, TIMEOUT_MS = 60000, FRAME_MAX_NBYTES = 1 << 20 };

typedef union {
    unsigned char bytes[64];
    void *alignment;
} zmq_msg_t;

static void *(*zmq_ctx_new)(void);
static void *(*zmq_socket)(void *, int);
static int (*zmq_bind)(void *, const char *);
static int (*zmq_connect)(void *, const char *);
static int (*zmq_getsockopt)(void *, int, void *, size_t *);
static int (*zmq_setsockopt)(void *, int, const void *, size_t);
static int (*zmq_msg_init)(zmq_msg_t *);
static int (*zmq_msg_init_size)(zmq_msg_t *, size_t);
static void *(*zmq_msg_data)(zmq_msg_t *);
static size_t (*zmq_msg_size)(const zmq_msg_t *);
static int (*zmq_msg_send)(zmq_msg_t *, void *, int);
static int (*zmq_msg_recv)(zmq_msg_t *, void *, int);
static int (*zmq_msg_close)(zmq_msg_t *);
static int (*zmq_close)(void *);
static int (*zmq_ctx_term)(void *);
static int (*zmq_errno)(void);
static const char *(*zmq_strerror)(int);

static void load_libzmq(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
#define LOAD(name)                                          \
    if (!(*(void **)&name = dlsym(library, #name))) {       \
        fprintf(stderr, "%s has no %s\n", path, #name);     \
        exit(2);                                            \
    }
    LOAD(zmq_ctx_new) LOAD(zmq_socket) LOAD(zmq_bind) LOAD(zmq_connect) LOAD(zmq_getsockopt)
    LOAD(zmq_setsockopt) LOAD(zmq_msg_init) LOAD(zmq_msg_init_size) LOAD(zmq_msg_data)
    LOAD(zmq_msg_size) LOAD(zmq_msg_send) LOAD(zmq_msg_recv) LOAD(zmq_msg_close) LOAD(zmq_close)
    LOAD(zmq_ctx_term) LOAD(zmq_errno) LOAD(zmq_strerror)
#undef LOAD
}

static void check(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, zmq_strerror(zmq_errno()));
        exit(1);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *open_socket(void *context, int type, const char *endpoint, int bound)
{
    const int timeout = TIMEOUT_MS, linger = 0;
    void *socket = zmq_socket(context, type);
    check(socket != NULL, "zmq_socket");
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    zmq_setsockopt(socket, ZMQ_SNDTIMEO, &timeout, sizeof timeout);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    check((bound ? zmq_bind : zmq_connect)(socket, endpoint) == 0, endpoint);
    return socket;
}

static void send_single(void *socket, const unsigned char *payloads, size_t nbytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        zmq_msg_t message;
        check(zmq_msg_init_size(&message, nbytes) == 0, "zmq_msg_init_size");
        memcpy(zmq_msg_data(&message), payloads + i * nbytes, nbytes);
        check(zmq_msg_send(&message, socket, 0) >= 0, "zmq_msg_send");
    }
}

static void send_batched(void *socket, const unsigned char *payloads, size_t nbytes, size_t count)
{
    const uint32_t length = (uint32_t)nbytes;
    const size_t item = sizeof length + nbytes, at_most = FRAME_MAX_NBYTES / item;
    for (size_t i = 0; i < count;) {
        const size_t n = count - i < at_most ? count - i : at_most;
        zmq_msg_t message;
        check(zmq_msg_init_size(&message, n * item) == 0, "zmq_msg_init_size");
        unsigned char *to = zmq_msg_data(&message);
        for (const size_t end = i + n; i < end; i++, to += item) {
            memcpy(to, &length, sizeof length);
            memcpy(to + sizeof length, payloads + i * nbytes, nbytes);
        }
        check(zmq_msg_send(&message, socket, 0) >= 0, "zmq_msg_send");
    }
}

static uint64_t receive(void *socket, int batched, size_t count)
{
    uint64_t checksum = 0;
    for (size_t i = 0; i < count;) {
        zmq_msg_t message;
        zmq_msg_init(&message);
        check(zmq_msg_recv(&message, socket, 0) >= 0, "zmq_msg_recv");
        const unsigned char *from = zmq_msg_data(&message);
        if (batched) {
            const unsigned char *end = from + zmq_msg_size(&message);
            for (; from < end; i++) {
                uint32_t length;
                memcpy(&length, from, sizeof length);
                checksum += from[sizeof length];
                from += sizeof length + length;
            }
        } else {
            checksum += from[0];
            i++;
        }
        zmq_msg_close(&message);
    }
    return checksum;
}

static void acknowledge(void *socket)
{
    zmq_msg_t message;
    zmq_msg_init_size(&message, 1);
    *(char *)zmq_msg_data(&message) = 1;
    check(zmq_msg_send(&message, socket, 0) >= 0, "acknowledgement");
}

static void await_acknowledgement(void *socket)
{
    zmq_msg_t message;
    zmq_msg_init(&message);
    check(zmq_msg_recv(&message, socket, 0) >= 0, "acknowledgement");
    zmq_msg_close(&message);
}

int main(int argc, char **argv)
{
    if (argc != 8) {
        fprintf(stderr, "usage: stream LIBZMQ receiver|sender single|batched NBYTES COUNT "
                        "ENDPOINT ACK_ENDPOINT\n");
        return 2;
    }
    load_libzmq(argv[1]);
    const int receiver = strcmp(argv[2], "receiver") == 0;
    const int batched = strcmp(argv[3], "batched") == 0;
    const size_t nbytes = strtoull(argv[4], NULL, 10), count = strtoull(argv[5], NULL, 10);
    void *context = zmq_ctx_new();
    void *data = open_socket(context, receiver ? ZMQ_PULL : ZMQ_PUSH, argv[6], receiver);
    void *ack = open_socket(context, receiver ? ZMQ_PUSH : ZMQ_PULL, argv[7], receiver);

    unsigned char *payloads = NULL;
    uint64_t checksum = 0;
    if (receiver) {
        char endpoint[256], ack_endpoint[256];
        size_t length = sizeof endpoint, ack_length = sizeof ack_endpoint;
        check(zmq_getsockopt(data, ZMQ_LAST_ENDPOINT, endpoint, &length) == 0, "endpoint");
        check(zmq_getsockopt(ack, ZMQ_LAST_ENDPOINT, ack_endpoint, &ack_length) == 0, "endpoint");
        printf("{\"endpoints\": [\"%s\", \"%s\"]}\n", endpoint, ack_endpoint);
    } else {
        payloads = malloc(nbytes * count);
        if (!payloads)
            return 1;
        memset(payloads, 1, nbytes * count);
        for (size_t i = 0; i < count; i++)
            checksum += payloads[i * nbytes] = (unsigned char)i;
        printf("{}\n");
    }
    fflush(stdout);

    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        if (receiver) {
            checksum = receive(data, batched, count);
            acknowledge(ack);
            printf("{\"checksum\": %llu}\n", (unsigned long long)checksum);
        } else {
            const double start = now();
            (batched ? send_batched : send_single)(data, payloads, nbytes, count);
            await_acknowledgement(ack);
            printf("{\"seconds\": %.9f, \"checksum\": %llu}\n", now() - start,
                   (unsigned long long)checksum);
        }
        fflush(stdout);
    }
    free(payloads);
    zmq_close(data);
    zmq_close(ack);
    zmq_ctx_term(context);
    return 0;
}
