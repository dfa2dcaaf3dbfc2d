/* The smallest child: no libc, a few pages, and without an argument nothing but exit_group(0). With one it does a single thing:
 *
 *   p          sleeps for ten minutes: somebody who forgets it is forgiven
 *   c          writes 64 bytes to stdout and 64 to stderr
 *   w N        writes N bytes to stdout, 1 MiB at a time
 *   f FILE     writes the time of its first act to FILE
 *   l FILE     sleeps for 300 us, so that whoever waits for it sleeps too, then writes the time of its last act to FILE
 *
 * A time is CLOCK_MONOTONIC in nanoseconds, as eight bytes at the head of the file. Knows no benchmark. */

#include <linux/time.h>
#include <sys/syscall.h>

enum { SLEEP_US = 300, PIECE_BYTES = 1 << 20 };

#if defined(__x86_64__)
static long call(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
#elif defined(__aarch64__)
static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
__asm__(".globl _start\n_start: mov x29, xzr\n mov x30, xzr\n mov x0, sp\n bl begin\n");
#else
#error "written for x86_64 and aarch64"
#endif

static void leave(int status)
{
    for (;;)
        call(SYS_exit_group, status, 0, 0, 0, 0, 0);
}

static void rest(long seconds, long us)
{
    struct __kernel_timespec span = { seconds, us * 1000 };
    call(SYS_nanosleep, (long)&span, 0, 0, 0, 0, 0);
}

static void stamp(long fd)
{
    struct __kernel_timespec now;
    call(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now, 0, 0, 0, 0);
    unsigned long long ns = (unsigned long long)now.tv_sec * 1000000000u + (unsigned long long)now.tv_nsec;
    call(SYS_pwrite64, fd, (long)&ns, sizeof ns, 0, 0, 0);
}

static long open_for_writing(const char *path)
{
    return call(SYS_openat, -100 /* AT_FDCWD */, (long)path, 1 /* O_WRONLY */, 0, 0, 0);
}

static void write_all(long bytes)
{
    char *piece = (char *)call(SYS_mmap, 0, PIECE_BYTES, 3 /* READ | WRITE */, 0x22 /* PRIVATE | ANONYMOUS */, -1, 0);
    for (long at = 0; at < PIECE_BYTES; at += 4096)
        piece[at] = 'x';
    while (bytes > 0) {
        long now = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
        long written = call(SYS_write, 1, (long)piece, now, 0, 0, 0);
        if (written <= 0)
            leave(1);
        bytes -= written;
    }
}

static long number(const char *text)
{
    long value = 0;
    for (; *text; text++)
        value = value * 10 + (*text - '0');
    return value;
}

static const char line[65] = "a line of sixty-four bytes, as a program might say when it ends\n";

void begin(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    long fd;
    if (argc < 2)
        leave(0);
    switch (argv[1][0]) {
    case 'p':
        rest(600, 0);
        break;
    case 'c':
        call(SYS_write, 1, (long)line, 64, 0, 0, 0);
        call(SYS_write, 2, (long)line, 64, 0, 0, 0);
        break;
    case 'w':
        write_all(number(argv[2]));
        break;
    case 'f':
        stamp(open_for_writing(argv[2]));
        break;
    case 'l':
        fd = open_for_writing(argv[2]);
        rest(0, SLEEP_US);
        stamp(fd);
        break;
    }
    leave(0);
}
