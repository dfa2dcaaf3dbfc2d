/* The floor: the system calls that a child costs, in a bare loop, and nothing around them. What it leaves out is what makes a
 * library: errors of the child are not reported, signals not blocked, nothing is looked up, cancelled or shared.
 *
 * System calls per child, of parent and child together, as tests/system_calls.rs counts them with strace:
 *
 *   null     clone3 1  close_range 1  dup3 3  execve 1  waitid 1  close 1
 *   epoll    clone3 1  close_range 1  dup3 3  execve 1  waitid 1  close 1  epoll_ctl 2
 *   capture  clone3 1  close_range 1  dup3 3  execve 1  waitid 1  close 5  pipe2 2  read 4  write 2
 *
 * and the exit_group of each child, which does not return and is not counted. `epoll` has 64 in flight: its epoll_wait takes what is
 * there, less than one call a child. `write` is the child's own.
 *
 * The parent is suspended until the exec (CLONE_VFORK) and shares its memory and its table of descriptors (CLONE_VM, CLONE_FILES);
 * the child first makes a table of its own of what is below the descriptors it needs.
 *
 * Changing this file moves every figure of the project: it needs a line in CHANGELOG.md. */

#include "worker.h"

#include <grp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct clone_args {
    u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

enum { STACK_BYTES = 64 << 10, UNSHARE = 2, HELD_MAX = 20000, FLIGHT_MAX = 4096, PIPE_BYTES = 1 << 20, READ_BYTES = 64 << 10 };

static const u64 FLAGS = 0x100 /* VM */ | 0x4000 /* VFORK */ | 0x1000 /* PIDFD */ | 0x400 /* FILES */ | 0x100000000 /* CLEAR_SIGHAND */;

/* ── one child ── */

struct order {
    char *argv[ARGS_MAX + 2];
    /* What becomes 0, 1, 2; -1: inherited. */
    int streams[3];
    char option;
};

#if defined(__x86_64__)
static inline long call(long number, long a, long b, long c, long d)
{
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}

static long clone_running(struct clone_args *args, void (*child)(struct order *), struct order *order)
{
    long result;
    register void *r12 __asm__("r12") = order;
    register void *r13 __asm__("r13") = child;
    __asm__ volatile("syscall\n test %%rax, %%rax\n jnz 1f\n xor %%ebp, %%ebp\n mov %%r12, %%rdi\n call *%%r13\n ud2\n 1:"
                     : "=a"(result) : "a"(SYS_clone3), "D"(args), "S"(sizeof *args), "r"(r12), "r"(r13) : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static inline long call(long number, long a, long b, long c, long d)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}

static long clone_running(struct clone_args *args, void (*child)(struct order *), struct order *order)
{
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    register void *x9 __asm__("x9") = order;
    register void *x10 __asm__("x10") = child;
    __asm__ volatile("svc 0\n cbnz x0, 1f\n mov x29, xzr\n mov x30, xzr\n mov x0, x9\n blr x10\n brk 1\n 1:"
                     : "+r"(x0) : "r"(x8), "r"(x1), "r"(x9), "r"(x10) : "memory");
    return x0;
}
#else
#error "written for x86_64 and aarch64"
#endif

static const gid_t group_of_nobody[] = { 65534 };
static const struct { u64 soft, hard; } files = { 1024, 1024 };

static void run_child(struct order *order)
{
    int end = 3;
    for (int i = 0; i < 3; i++)
        end = order->streams[i] >= end ? order->streams[i] + 1 : end;
    call(SYS_close_range, end, ~0u, UNSHARE, 0);
    for (int i = 0; i < 3; i++)
        if (order->streams[i] >= 0)
            call(SYS_dup3, order->streams[i], i, 0, 0);
    switch (order->option) {
    case 'u': call(SYS_setgroups, 0, 0, 0, 0), call(SYS_setresuid, 65534, 65534, 65534, 0); break;
    case 'g': call(SYS_setresgid, 65534, 65534, 65534, 0); break;
    case 'G': call(SYS_setgroups, 1, (long)group_of_nobody, 0, 0); break;
    case 's': call(SYS_setsid, 0, 0, 0, 0); break;
    case 'p': call(SYS_setpgid, 0, 0, 0, 0); break;
    case 'c': call(SYS_chdir, (long)"/", 0, 0, 0); break;
    case 'r': call(SYS_chroot, (long)"/", 0, 0, 0); break;
    case 'l': call(SYS_prlimit64, 0, RLIMIT_NOFILE, (long)&files, 0); break;
    case 'm': call(SYS_umask, 022, 0, 0, 0); break;
    }
    call(SYS_execve, (long)order->argv[0], (long)order->argv, (long)environ, 0);
    for (;;)
        call(SYS_exit_group, 127, 0, 0, 0);
}

static _Thread_local char *stack;

/* A pidfd, or a negated errno. */
static int start(struct order *order)
{
    int pidfd = -1;
    if (!stack)
        stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct clone_args args = { .flags = FLAGS, .pidfd = (u64)&pidfd, .exit_signal = SIGCHLD, .stack = (u64)stack, .stack_size = STACK_BYTES };
    long pid = clone_running(&args, run_child, order);
    return pid < 0 ? (int)pid : pidfd;
}

static void reap(int pidfd)
{
    siginfo_t info;
    waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED);
    close(pidfd);
}

/* ── many ── */

static int null_fd;

static int order_from(struct job *job, struct order *order)
{
    /* `path` is about a lookup; here nothing is looked up. */
    static const struct { const char *name; char letter; } options[] = {
        { "uid", 'u' }, { "gid", 'g' },    { "groups", 'G' }, { "setsid", 's' }, { "process_group", 'p' },
        { "cwd", 'c' }, { "chroot", 'r' }, { "rlimit", 'l' }, { "umask", 'm' },  { "path", ' ' },
    };
    const char *option = text(job, "option");
    arguments(job, order->argv);
    int stream = !strcmp(text(job, "stdio"), "inherit") ? -1 : null_fd;
    for (int i = 0; i < 3; i++)
        order->streams[i] = stream;
    order->option = 0;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (!strcmp(options[i].name, option))
            order->option = options[i].letter;
    if (*option && !order->option)
        no("this option is not part of the floor");
    return !*option || order->option;
}

/* A capture: the read ends of stdout and stderr, and the write ends while the child is made. */
struct flight {
    int pidfd, ends[2];
    u64 started;
};

static int take_off(struct order *order, struct flight *flight, int capture)
{
    struct order own = *order;
    int out[2], err[2];
    flight->started = now_ns();
    if (capture) {
        if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
            return -errno;
        own.streams[1] = out[1], own.streams[2] = err[1];
        flight->ends[0] = out[0], flight->ends[1] = err[0];
    }
    flight->pidfd = start(capture ? &own : order);
    if (capture)
        close(out[1]), close(err[1]);
    return flight->pidfd;
}

static void land(struct flight *flight, int capture)
{
    char bytes[4096];
    for (int i = 0; capture && i < 2; i++) {
        while (read(flight->ends[i], bytes, sizeof bytes) > 0)
            ;
        close(flight->ends[i]);
    }
    reap(flight->pidfd);
}

struct load {
    struct order order;
    u64 n, k, until, done, *each;
    int capture, failed;
    pthread_barrier_t *gate;
};

static void one_by_one(struct load *load)
{
    struct flight flight;
    while (load->done < load->n && now_ns() < load->until) {
        if ((load->failed = -take_off(&load->order, &flight, load->capture)) > 0)
            return;
        land(&flight, load->capture);
        load->each[load->done++] = now_ns() - flight.started;
    }
}

static void in_flight(struct load *load)
{
    static _Thread_local struct flight flights[FLIGHT_MAX];
    static _Thread_local int free_slots[FLIGHT_MAX];
    int epoll = epoll_create1(EPOLL_CLOEXEC), vacant = (int)load->k;
    u64 started = 0;
    for (int i = 0; i < vacant; i++)
        free_slots[i] = i;
    while (started < load->n || load->done < started) {
        while (vacant && started < load->n) {
            if (now_ns() >= load->until) {
                load->n = started;
                break;
            }
            int slot = free_slots[--vacant];
            struct epoll_event event = { .events = EPOLLIN, .data.u32 = (uint32_t)slot };
            if ((load->failed = -take_off(&load->order, &flights[slot], load->capture)) > 0)
                return;
            epoll_ctl(epoll, EPOLL_CTL_ADD, flights[slot].pidfd, &event);
            started++;
        }
        struct epoll_event events[256];
        int ready = load->done < started ? epoll_wait(epoll, events, 256, -1) : 0;
        for (int i = 0; i < ready; i++) {
            struct flight *flight = &flights[events[i].data.u32];
            epoll_ctl(epoll, EPOLL_CTL_DEL, flight->pidfd, NULL);
            land(flight, load->capture);
            load->each[load->done++] = now_ns() - flight->started;
            free_slots[vacant++] = (int)events[i].data.u32;
        }
    }
    close(epoll);
}

static void *run_load(void *data)
{
    struct load *load = data;
    pthread_barrier_wait(load->gate);
    load->until += now_ns();
    load->k > 1 ? in_flight(load) : one_by_one(load);
    return NULL;
}

static void do_spawn(struct job *job)
{
    u64 threads = number(job, "threads", 1), n = number(job, "n", 1) / threads, k = number(job, "k", 1) / threads, done = 0;
    struct load loads[8] = { 0 };
    pthread_t ids[8];
    pthread_barrier_t gate;
    u64 *each = malloc((n * threads + 1) * sizeof *each);
    pthread_barrier_init(&gate, NULL, (unsigned)threads);
    u64 cpu = cpu_ns(), begin = now_ns();
    for (u64 i = 0; i < threads; i++) {
        struct load *load = &loads[i];
        *load = (struct load){ .n = n, .k = k, .until = number(job, "ms", 60000) * 1000000, .each = each + i * n, .gate = &gate };
        load->capture = !strcmp(text(job, "stdio"), "capture");
        if (!order_from(job, &load->order))
            return;
        if (i + 1 < threads)
            pthread_create(&ids[i], NULL, run_load, load);
        else
            run_load(load);
    }
    for (u64 i = 0; i + 1 < threads; i++)
        pthread_join(ids[i], NULL);
    u64 ns = now_ns() - begin;
    for (u64 i = 0; i < threads; i++) {
        if (loads[i].failed > 0)
            return no(strerror(loads[i].failed));
        memmove(each + done, loads[i].each, loads[i].done * sizeof *each);
        done += loads[i].done;
    }
    printf("ok n=%lu ns=%lu cpu=%lu", done, ns, cpu_ns() - cpu);
    print_quantiles(each, done);
    printf("\n");
    free(each);
}

static u64 spawn_for_neighbour(struct job *job)
{
    struct load load = { .n = ~0ul >> 1, .k = 1, .until = now_ns() + number(job, "ms", 1000) * 1000000 };
    struct flight flight;
    order_from(job, &load.order);
    for (; now_ns() < load.until && take_off(&load.order, &flight, 0) >= 0; load.done++)
        land(&flight, 0);
    return load.done;
}

/* ── children that are held, and cancelled: all signals first, then all exits ── */

static int held[HELD_MAX], held_n;

static void do_hold(struct job *job)
{
    struct order order;
    u64 n = number(job, "n", 0);
    order_from(job, &order);
    for (; n > 0; n--) {
        int pidfd = held_n < HELD_MAX ? start(&order) : -ENOMEM;
        if (pidfd < 0)
            return no(strerror(-pidfd));
        held[held_n++] = pidfd;
    }
    printf("ok n=%d\n", held_n);
}

static u64 end_held(void)
{
    u64 begin = now_ns();
    for (int i = 0; i < held_n; i++)
        syscall(SYS_pidfd_send_signal, held[i], SIGKILL, NULL, 0);
    for (int i = 0; i < held_n; i++)
        reap(held[i]);
    return now_ns() - begin;
}

static void do_cancel(struct job *job)
{
    (void)job;
    u64 ns = end_held();
    printf("ok n=%d ns=%lu\n", held_n, ns);
    held_n = 0;
}

/* ── latencies ── */

static void do_latency(struct job *job)
{
    const char *kind = text(job, "kind"), *file = text(job, "file");
    u64 n = number(job, "n", 1);
    u64 *each = malloc(n * sizeof *each);
    struct order order;
    order_from(job, &order);
    for (u64 i = 0; i < n; i++) {
        u64 begin = now_ns();
        int pidfd = start(&order);
        u64 started = now_ns();
        if (pidfd < 0)
            return no(strerror(-pidfd));
        if (!strcmp(kind, "cancel")) {
            sleep_us(300);
            begin = now_ns();
            syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        }
        siginfo_t info;
        waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED);
        u64 end = now_ns();
        close(pidfd);
        each[i] = !strcmp(kind, "exit") ? end - read_stamp(file) : !strcmp(kind, "exec") ? read_stamp(file) - begin
                : !strcmp(kind, "call") ? started - begin : end - begin;
    }
    printf("ok n=%lu", n);
    print_quantiles(each, n);
    printf("\n");
    free(each);
}

/* ── bytes ── */

struct stream {
    struct order order;
    u64 bytes;
    int keep;
    pthread_t thread;
};

static void *read_stream(void *data)
{
    struct stream *stream = data;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return NULL;
    fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES);
    stream->order.streams[1] = ends[1];
    int pidfd = start(&stream->order);
    close(ends[1]);
    size_t room = stream->keep ? PIPE_BYTES : READ_BYTES, at = 0;
    char *bytes = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (;;) {
        if (stream->keep && room - at < READ_BYTES) {
            bytes = mremap(bytes, room, room * 2, MREMAP_MAYMOVE);
            room *= 2;
        }
        ssize_t got = read(ends[0], bytes + (stream->keep ? at : 0), stream->keep ? room - at : READ_BYTES);
        if (got <= 0)
            break;
        at += (size_t)got;
    }
    munmap(bytes, room);
    close(ends[0]);
    reap(pidfd);
    stream->bytes = at;
    return NULL;
}

static void do_pipe(struct job *job)
{
    u64 n = number(job, "children", 1), bytes = 0;
    struct stream *streams = calloc(n, sizeof *streams);
    u64 cpu = cpu_ns(), begin = now_ns();
    for (u64 i = 0; i < n; i++) {
        order_from(job, &streams[i].order);
        streams[i].keep = !strcmp(text(job, "mode"), "memory");
        pthread_create(&streams[i].thread, NULL, read_stream, &streams[i]);
    }
    for (u64 i = 0; i < n; i++) {
        pthread_join(streams[i].thread, NULL);
        bytes += streams[i].bytes;
    }
    u64 ns = now_ns() - begin;
    printf("ok bytes=%lu ns=%lu cpu=%lu\n", bytes, ns, cpu_ns() - cpu);
    free(streams);
}

static void about(void)
{
    printf("ok version=clone3\n");
}

int main(void)
{
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    serve();
    end_held();
    return 0;
}
