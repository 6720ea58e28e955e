/* An engine with negligible cost, so that a benchmark measures the gateway: one thread on epoll.

   cc -O2 -o gateway_engine gateway_engine.c && ./gateway_engine 8300

   A request whose body contains `"stream":true` gets CHUNKS events, GAP microseconds apart, each with the time
   at which it was sent; the text can set both: `GAP=20000;CHUNKS=50;`. Other requests get a short response. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, ROOM = 1 << 18 };

typedef struct connection {
    int socket, chunks, sent;
    long long due, gap;
    size_t filled;
    struct connection *next, *previous;
    char bytes[ROOM];
} connection;

static connection *streaming;
static char plain[2048];
static size_t plain_bytes;

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void put(connection *to, const char *bytes, size_t size) {
    while (size) {
        ssize_t sent = send(to->socket, bytes, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return;
        if (sent < 0) { usleep(200); continue; }
        bytes += sent;
        size -= sent;
    }
}

static void start_stream(connection *one, long long gap, int chunks) {
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    one->gap = gap; one->chunks = chunks; one->sent = 0; one->due = now();
    one->previous = NULL; one->next = streaming;
    if (streaming) streaming->previous = one;
    streaming = one;
    put(one, head, sizeof head - 1);
}

static void end_stream(connection *one) {
    if (!one->chunks) return;
    one->chunks = 0;
    if (one->previous) one->previous->next = one->next; else streaming = one->next;
    if (one->next) one->next->previous = one->previous;
}

static void put_chunk(connection *to) {
    char event[512], framed[600];
    const char *shape = "data: {\"id\": \"chatcmpl-x\", \"object\": \"chat.completion.chunk\", \"created\": 1700000000,"
                        " \"model\": \"m\", \"choices\": [{\"index\": 0, \"delta\": {\"content\": \"T%019lld \"},"
                        " \"finish_reason\": null}]}\n\n";
    int last = ++to->sent == to->chunks;
    int size = last ? sprintf(event, "data: [DONE]\n\n") : sprintf(event, shape, now());
    int all = sprintf(framed, "%x\r\n%s\r\n%s", size, event, last ? "0\r\n\r\n" : "");
    to->due += to->gap;
    if (last) end_stream(to);
    put(to, framed, all);
}

static long long number(const char *text, const char *name, long long otherwise) {
    const char *found = strstr(text, name);
    return found ? atoll(found + strlen(name)) : otherwise;
}

/* Respond to the first complete request; return 0 if there is none. */
static int respond(connection *one) {
    if (one->chunks) return 0;
    one->bytes[one->filled] = 0;
    char *end = strstr(one->bytes, "\r\n\r\n");
    if (!end) return 0;
    *end = 0;
    char *length = strcasestr(one->bytes, "\ncontent-length:");
    char *body = end + 4;
    size_t size = body - one->bytes + (length ? atoll(length + 16) : 0);
    *end = '\r';
    if (one->filled < size) return 0;
    char kept = one->bytes[size];
    one->bytes[size] = 0;
    if (strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true"))
        start_stream(one, number(body, "GAP=", 0) * 1000, number(body, "CHUNKS=", 22));
    else
        put(one, plain, plain_bytes);
    one->bytes[size] = kept;
    memmove(one->bytes, one->bytes + size, one->filled - size);
    one->filled -= size;
    return 1;
}

static void disconnect(connection *one) {
    end_stream(one);
    close(one->socket);
    free(one);
}

static void receive(connection *one) {
    ssize_t got = recv(one->socket, one->bytes + one->filled, ROOM - 1 - one->filled, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) { disconnect(one); return; }
    if (got > 0) one->filled += got;
    while (respond(one)) {}
}

static void accept_all(int listener, int poll) {
    for (;;) {
        int found = accept4(listener, NULL, NULL, SOCK_NONBLOCK), on = 1;
        if (found < 0) return;
        setsockopt(found, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connection *one = calloc(1, sizeof *one);
        one->socket = found;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
        epoll_ctl(poll, EPOLL_CTL_ADD, found, &event);
    }
}

static struct timespec *next_timeout(struct timespec *wait) {
    if (!streaming) return NULL;
    long long due = streaming->due, left;
    for (connection *one = streaming; one; one = one->next) if (one->due < due) due = one->due;
    left = due - now();
    if (left < 0) left = 0;
    *wait = (struct timespec){left / 1000000000, left % 1000000000};
    return wait;
}

int main(int count, char **arguments) {
    if (count != 2) { fprintf(stderr, "usage: gateway_engine PORT\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    char body[1024];
    int size = sprintf(body, "{\"id\": \"chatcmpl-x\", \"object\": \"chat.completion\", \"created\": 1700000000, "
        "\"model\": \"m\", \"choices\": [{\"index\": 0, \"message\": {\"role\": \"assistant\", \"content\": \"%s\"}, "
        "\"finish_reason\": \"stop\"}], \"usage\": {\"prompt_tokens\": 10, \"completion_tokens\": 20, "
        "\"total_tokens\": 30}}", "twenty words or so of an answer, as they might be given to a short question");
    plain_bytes = sprintf(plain, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
        size, body);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, poll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) { perror("bind"); return 1; }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct timespec wait;
        int ready = epoll_pwait2(poll, events, EVENTS, next_timeout(&wait), NULL);
        for (int i = 0; i < ready; i++)
            if (events[i].data.ptr) receive(events[i].data.ptr); else accept_all(listener, poll);
        for (connection *one = streaming, *next; one; one = next) {
            next = one->next;
            if (one->due <= now()) {
                put_chunk(one);
                if (!one->chunks) while (respond(one)) {}
            }
        }
    }
}
