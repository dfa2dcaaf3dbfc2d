/* The other side of the benchmarks' questions, for programs in C: a job is a line `verb key=value …` on stdin, its answer a line
 * `ok key=value …` or `no why` on stdout. Knows how a job is told, not how a child is started.
 *
 * The program defines the functions declared at the head; each answers by itself. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;

struct job;
static void about(void);
static void do_spawn(struct job *job);
static void do_hold(struct job *job);
static void do_cancel(struct job *job);
static void do_latency(struct job *job);
static void do_pipe(struct job *job);

enum { PAIRS_MAX = 32, ARGS_MAX = 4 };

struct job {
    const char *verb;
    int pairs;
    const char *keys[PAIRS_MAX];
    const char *values[PAIRS_MAX];
};

static const char *text(struct job *job, const char *key)
{
    for (int i = 0; i < job->pairs; i++)
        if (!strcmp(job->keys[i], key))
            return job->values[i];
    return "";
}

static u64 number(struct job *job, const char *key, u64 otherwise)
{
    const char *value = text(job, key);
    return *value ? strtoull(value, NULL, 10) : otherwise;
}

/* `child=PROGRAM args=a,b` as an argument vector. */
static void arguments(struct job *job, char *argv[ARGS_MAX + 2])
{
    int n = 0;
    char *rest = strdup(text(job, "args")), *save = NULL;
    argv[n++] = (char *)text(job, "child");
    for (char *arg = strtok_r(rest, ",", &save); arg && n <= ARGS_MAX; arg = strtok_r(NULL, ",", &save))
        argv[n++] = arg;
    argv[n] = NULL;
}

static u64 now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec;
}

static u64 cpu_ns(void)
{
    u64 sum = 0;
    int who[] = { RUSAGE_SELF, RUSAGE_CHILDREN };
    for (int i = 0; i < 2; i++) {
        struct rusage usage;
        getrusage(who[i], &usage);
        sum += ((u64)usage.ru_utime.tv_sec + (u64)usage.ru_stime.tv_sec) * 1000000000u;
        sum += ((u64)usage.ru_utime.tv_usec + (u64)usage.ru_stime.tv_usec) * 1000u;
    }
    return sum;
}

static int by_size(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

static u64 quantile(u64 *sorted, u64 n, double q)
{
    return n ? sorted[(u64)((double)(n - 1) * q)] : 0;
}

/* ` p50=… p99=… p999=… max=…`, of nanoseconds. */
static void print_quantiles(u64 *each, u64 n)
{
    qsort(each, n, sizeof *each, by_size);
    printf(" p50=%lu p99=%lu p999=%lu max=%lu", quantile(each, n, 0.5), quantile(each, n, 0.99), quantile(each, n, 0.999),
           quantile(each, n, 1));
}

static u64 read_stamp(const char *path)
{
    u64 ns = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (pread(fd, &ns, sizeof ns, 0) != sizeof ns)
        ns = 0;
    close(fd);
    return ns;
}

static void sleep_us(long us)
{
    struct timespec span = { 0, us * 1000 };
    nanosleep(&span, NULL);
}

static void no(const char *why)
{
    printf("no %s\n", why);
}

/* Private pages, each written once. */
static void do_touch(struct job *job)
{
    size_t bytes = number(job, "bytes", 0);
    char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return no("out of memory");
    madvise(base, bytes, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < bytes; at += 4096)
        base[at] = 1;
    printf("ok\n");
}

static void do_open(struct job *job)
{
    for (u64 n = number(job, "fds", 0); n > 0; n--)
        if (open("/dev/null", O_RDONLY | O_CLOEXEC) < 0)
            return no(strerror(errno));
    printf("ok\n");
}

/* ── a busy thread, while this one spawns ── */

enum { FAULTS_MAX = 8 << 20, PATCH_PAGES = 256 };

struct busy {
    atomic_int stop;
    u64 *each;
    u64 n;
};

static void *fault_pages(void *data)
{
    struct busy *busy = data;
    while (!atomic_load(&busy->stop)) {
        char *patch = mmap(NULL, PATCH_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (int i = 0; i < PATCH_PAGES && busy->n < FAULTS_MAX; i++) {
            u64 start = now_ns();
            patch[i * 4096] = 1;
            busy->each[busy->n++] = now_ns() - start;
        }
        munmap(patch, PATCH_PAGES * 4096);
    }
    return NULL;
}

static void *count_ticks(void *data)
{
    struct busy *busy = data;
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    while (!atomic_load(&busy->stop) && busy->n < FAULTS_MAX) {
        at.tv_nsec += 1000000;
        if (at.tv_nsec >= 1000000000)
            at.tv_nsec -= 1000000000, at.tv_sec++;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
        busy->each[busy->n++] = now_ns() - ((u64)at.tv_sec * 1000000000u + (u64)at.tv_nsec);
    }
    return NULL;
}

static u64 spawn_for_neighbour(struct job *job);

static void do_neighbour(struct job *job)
{
    struct busy busy = { 0 };
    pthread_t thread;
    busy.each = malloc(FAULTS_MAX * sizeof *busy.each);
    memset(busy.each, 1, FAULTS_MAX * sizeof *busy.each);
    pthread_create(&thread, NULL, !strcmp(text(job, "kind"), "ticks") ? count_ticks : fault_pages, &busy);
    u64 spawned = number(job, "spawn", 0) ? spawn_for_neighbour(job) : (sleep_us(0), usleep(number(job, "ms", 0) * 1000), 0);
    atomic_store(&busy.stop, 1);
    pthread_join(thread, NULL);
    printf("ok n=%lu spawned=%lu", busy.n, spawned);
    print_quantiles(busy.each, busy.n);
    printf("\n");
    free(busy.each);
}

static void serve(void)
{
    static char line[8192];
    while (fgets(line, sizeof line, stdin)) {
        struct job job = { 0 };
        char *save = NULL, *word = strtok_r(line, " \n", &save);
        job.verb = word ? word : "";
        while ((word = strtok_r(NULL, " \n", &save)) && job.pairs < PAIRS_MAX) {
            char *equals = strchr(word, '=');
            if (!equals)
                continue;
            *equals = 0;
            job.keys[job.pairs] = word;
            job.values[job.pairs++] = equals + 1;
        }
        struct { const char *verb; void (*answer)(struct job *); } table[] = {
            { "spawn", do_spawn }, { "hold", do_hold }, { "cancel", do_cancel }, { "latency", do_latency },
            { "pipe", do_pipe },   { "touch", do_touch }, { "open", do_open },   { "neighbour", do_neighbour },
        };
        int known = 0;
        for (size_t i = 0; i < sizeof table / sizeof *table; i++)
            if (!strcmp(table[i].verb, job.verb))
                known = 1, table[i].answer(&job);
        if (!strcmp(job.verb, "about"))
            known = 1, about();
        if (!known)
            no("an unknown verb");
        fflush(stdout);
    }
}
