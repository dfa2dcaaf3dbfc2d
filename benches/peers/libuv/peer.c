/* The benchmarks' peer in libuv: one loop on the calling thread. */

#include "../../floor/worker.h"

#include <fcntl.h>
#include <signal.h>
#include <uv.h>

enum { HELD_MAX = 20000, PIECE_BYTES = 64 << 10 };

struct child;
typedef void (*whenever)(struct child *child);

/* A process with the pipes of its stdout and stderr, if they are read. */
struct child {
    uv_process_t process;
    uv_pipe_t pipes[2];
    u64 started;
    int open, exited;
    whenever over;
    /* What was read; grows only if it is kept. */
    char *bytes;
    size_t got, room;
    int keep;
};

static uv_loop_t *loop;
static char piece[PIECE_BYTES];

static void closed(uv_handle_t *handle)
{
    struct child *child = handle->data;
    if (--child->open == 0 && child->over)
        child->over(child);
}

static void exited(uv_process_t *process, int64_t status, int signal)
{
    (void)status, (void)signal;
    struct child *child = process->data;
    child->exited = 1;
    uv_close((uv_handle_t *)process, closed);
}

static void give_room(uv_handle_t *handle, size_t wanted, uv_buf_t *buffer)
{
    (void)wanted;
    struct child *child = handle->data;
    if (!child->keep) {
        *buffer = uv_buf_init(piece, PIECE_BYTES);
        return;
    }
    if (child->room - child->got < PIECE_BYTES) {
        child->room = child->room ? child->room * 2 : PIECE_BYTES;
        child->bytes = realloc(child->bytes, child->room);
    }
    *buffer = uv_buf_init(child->bytes + child->got, (unsigned)(child->room - child->got));
}

static void took(uv_stream_t *stream, ssize_t got, const uv_buf_t *buffer)
{
    (void)buffer;
    struct child *child = stream->data;
    if (got < 0)
        uv_close((uv_handle_t *)stream, closed);
    else
        child->got += (size_t)got;
}

/* A negated errno if it fails; `pipes` of stdout and stderr are read. */
static int start(struct job *job, struct child *child, int pipes, whenever over)
{
    char *argv[ARGS_MAX + 2];
    const char *option = text(job, "option"), *stdio = text(job, "stdio");
    uv_stdio_container_t streams[3] = { 0 };
    uv_process_options_t options = { .exit_cb = exited, .stdio_count = 3, .stdio = streams };
    arguments(job, argv);
    options.file = argv[0];
    options.args = argv;
    for (int i = 0; i < 3; i++) {
        streams[i].flags = strcmp(stdio, "inherit") ? UV_IGNORE : UV_INHERIT_FD;
        streams[i].data.fd = i;
    }
    for (int i = 0; i < pipes; i++) {
        uv_pipe_init(loop, &child->pipes[i], 0);
        child->pipes[i].data = child;
        streams[i + 1].flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE;
        streams[i + 1].data.stream = (uv_stream_t *)&child->pipes[i];
    }
    if (!strcmp(option, "uid"))
        options.flags = UV_PROCESS_SETUID, options.uid = 65534;
    else if (!strcmp(option, "gid"))
        options.flags = UV_PROCESS_SETGID, options.gid = 65534;
    else if (!strcmp(option, "setsid"))
        options.flags = UV_PROCESS_DETACHED;
    else if (!strcmp(option, "cwd"))
        options.cwd = "/";
    else if (*option)
        return -ENOTSUP;
    child->process.data = child;
    child->open = 1 + pipes;
    child->over = over;
    child->exited = 0;
    child->started = now_ns();
    int failed = uv_spawn(loop, &child->process, &options);
    for (int i = 0; i < pipes && !failed; i++)
        uv_read_start((uv_stream_t *)&child->pipes[i], give_room, took);
    return failed;
}

static void finish(struct child *child)
{
    while (child->open)
        uv_run(loop, UV_RUN_ONCE);
}

/* ── many ── */

static struct {
    struct job *job;
    u64 n, started, done, until, *each, active;
    int capture, failed;
} load;

static void again(struct child *child)
{
    if (child->started) {
        load.each[load.done++] = now_ns() - child->started;
        load.active--;
    }
    if (load.started < load.n && now_ns() < load.until && !load.failed) {
        load.started++;
        load.failed = -start(load.job, child, load.capture ? 2 : 0, again);
        load.active += !load.failed;
    }
}

static u64 spawn_load(struct job *job, u64 n, u64 **each)
{
    u64 k = number(job, "k", 1);
    struct child *children = calloc(k, sizeof *children);
    load.job = job, load.n = n, load.started = load.done = load.active = 0, load.failed = 0;
    load.until = now_ns() + number(job, "ms", 60000) * 1000000;
    load.capture = !strcmp(text(job, "stdio"), "capture");
    load.each = *each = malloc(((n < 1 << 20 ? n : 1 << 20) + 1) * sizeof **each);
    for (u64 i = 0; i < k; i++)
        again(&children[i]);
    /* Not until nothing is left: there may be children that are held. */
    while (load.active)
        uv_run(loop, UV_RUN_ONCE);
    free(children);
    return load.done;
}

static void do_spawn(struct job *job)
{
    u64 *each, cpu = cpu_ns(), begin = now_ns(), n = spawn_load(job, number(job, "n", 1), &each), ns = now_ns() - begin;
    if (load.failed)
        no(load.failed == ENOTSUP ? "it has no such option" : uv_strerror(-load.failed));
    else {
        printf("ok n=%lu ns=%lu cpu=%lu", n, ns, cpu_ns() - cpu);
        print_quantiles(each, n);
        printf("\n");
    }
    free(each);
}

static u64 spawn_for_neighbour(struct job *job)
{
    u64 *each, n = spawn_load(job, 1 << 20, &each);
    free(each);
    return n;
}

static struct child *held[HELD_MAX];
static int held_n;

static void do_hold(struct job *job)
{
    for (u64 n = number(job, "n", 0); n > 0; n--) {
        struct child *child = calloc(1, sizeof *child);
        int failed = held_n < HELD_MAX ? start(job, child, 0, NULL) : -ENOMEM;
        if (failed)
            return no(uv_strerror(failed));
        held[held_n++] = child;
    }
    printf("ok n=%d\n", held_n);
}

static u64 end_held(void)
{
    u64 begin = now_ns();
    for (int i = 0; i < held_n; i++)
        uv_process_kill(&held[i]->process, SIGKILL);
    uv_run(loop, UV_RUN_DEFAULT);
    for (int i = 0; i < held_n; i++)
        free(held[i]);
    return now_ns() - begin;
}

static void do_cancel(struct job *job)
{
    (void)job;
    u64 ns = end_held();
    printf("ok n=%d ns=%lu\n", held_n, ns);
    held_n = 0;
}

static void do_latency(struct job *job)
{
    const char *kind = text(job, "kind"), *file = text(job, "file");
    u64 n = number(job, "n", 1);
    u64 *each = malloc(n * sizeof *each);
    static struct child child;
    for (u64 i = 0; i < n; i++) {
        u64 begin = now_ns();
        int failed = start(job, &child, 0, NULL);
        u64 started = now_ns();
        if (failed)
            return no(uv_strerror(failed));
        if (!strcmp(kind, "cancel")) {
            sleep_us(300);
            begin = now_ns();
            uv_process_kill(&child.process, SIGKILL);
        }
        while (!child.exited)
            uv_run(loop, UV_RUN_ONCE);
        u64 end = now_ns();
        finish(&child);
        each[i] = !strcmp(kind, "exit") ? end - read_stamp(file) : !strcmp(kind, "exec") ? read_stamp(file) - begin
                : !strcmp(kind, "call") ? started - begin : end - begin;
    }
    printf("ok n=%lu", n);
    print_quantiles(each, n);
    printf("\n");
    free(each);
}

static void do_pipe(struct job *job)
{
    u64 n = number(job, "children", 1), bytes = 0, cpu = cpu_ns(), begin = now_ns();
    struct child *children = calloc(n, sizeof *children);
    for (u64 i = 0; i < n; i++) {
        children[i].keep = !strcmp(text(job, "mode"), "memory");
        int failed = start(job, &children[i], 1, NULL);
        if (failed)
            return no(uv_strerror(failed));
    }
    for (u64 i = 0; i < n; i++)
        finish(&children[i]);
    u64 ns = now_ns() - begin;
    for (u64 i = 0; i < n; i++) {
        bytes += children[i].got;
        free(children[i].bytes);
    }
    printf("ok bytes=%lu ns=%lu cpu=%lu\n", bytes, ns, cpu_ns() - cpu);
    free(children);
}

static void about(void)
{
    printf("ok version=%s\n", uv_version_string());
}

int main(void)
{
    loop = uv_default_loop();
    serve();
    end_held();
    return 0;
}
