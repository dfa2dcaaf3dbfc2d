"""The benchmarks' peer in Python: subprocess, with threads where several are in flight. A job is a line `verb key=value ...` on stdin,
its answer a line `ok key=value ...` or `no why` on stdout."""

import mmap
import os
import platform
import resource
import struct
import subprocess
import sys
import threading
import time

NOBODY = 65534
OPTIONS = {
    "": {},
    "uid": {"user": NOBODY},
    "gid": {"group": NOBODY},
    "groups": {"extra_groups": [NOBODY]},
    "setsid": {"start_new_session": True},
    "process_group": {"process_group": 0},
    "cwd": {"cwd": "/"},
    "umask": {"umask": 0o22},
    "chroot": {"preexec_fn": lambda: os.chroot("/")},
    "rlimit": {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))},
}


def arguments(job):
    """What Popen is called with."""
    option = job.get("option", "")
    program, keywords = job["child"], {}
    if option == "path":
        directory, program = os.path.split(program)
        keywords["env"] = {**os.environ, "PATH": directory}
    elif option in OPTIONS:
        keywords.update(OPTIONS[option])
    else:
        raise ValueError("it has no " + option)
    argv = [program] + [arg for arg in job.get("args", "").split(",") if arg]
    if job.get("stdio", "null") == "null":
        keywords.update(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return argv, keywords


def run(job):
    argv, keywords = arguments(job)
    if job.get("stdio") == "capture":
        subprocess.run(argv, capture_output=True, **keywords)
    else:
        subprocess.run(argv, **keywords)


def cpu():
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return int(total * 1e9)


def quantiles(each):
    each.sort()

    def at(q):
        return each[int((len(each) - 1) * q)] if each else 0

    return f" p50={at(0.5)} p99={at(0.99)} p999={at(0.999)} max={at(1)}"


def load(job):
    """Runs children until enough were; gives the time of each."""
    until = time.monotonic() + int(job.get("ms", 60000)) / 1000
    left, lock, each, failed = [int(job.get("n", 1))], threading.Lock(), [], []

    def work():
        try:
            while time.monotonic() < until:
                with lock:
                    if left[0] <= 0:
                        return
                    left[0] -= 1
                start = time.monotonic_ns()
                run(job)
                each.append(time.monotonic_ns() - start)
        except Exception as error:
            failed.append(error)

    workers = max(int(job.get("k", 1)), int(job.get("threads", 1)))
    if workers == 1:
        work()
    else:
        threads = [threading.Thread(target=work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    return each


def spawn(job):
    before, begin = cpu(), time.monotonic_ns()
    each = load(job)
    ns = time.monotonic_ns() - begin
    return f"n={len(each)} ns={ns} cpu={cpu() - before}" + quantiles(each)


held = []
touched = []


def hold(job):
    argv, keywords = arguments(job)
    for _ in range(int(job.get("n", 0))):
        held.append(subprocess.Popen(argv, **keywords))
    return f"n={len(held)}"


def cancel(_job):
    begin, n = time.monotonic_ns(), len(held)
    for child in held:
        child.kill()
    for child in held:
        child.wait()
    held.clear()
    return f"n={n} ns={time.monotonic_ns() - begin}"


def stamp(path):
    with open(path, "rb") as file:
        return struct.unpack("=Q", file.read(8))[0]


def latency(job):
    argv, keywords = arguments(job)
    each = []
    for _ in range(int(job.get("n", 1))):
        begin = time.monotonic_ns()
        child = subprocess.Popen(argv, **keywords)
        started = time.monotonic_ns()
        if job["kind"] == "cancel":
            time.sleep(0.0003)
            begin = time.monotonic_ns()
            child.kill()
        child.wait()
        end = time.monotonic_ns()
        if job["kind"] == "exit":
            each.append(end - stamp(job["file"]))
        elif job["kind"] == "exec":
            each.append(stamp(job["file"]) - begin)
        elif job["kind"] == "call":
            each.append(started - begin)
        else:
            each.append(end - begin)
    return f"n={len(each)}" + quantiles(each)


def read(job):
    argv, keywords = arguments(job)
    keywords.pop("stdout", None)
    if job.get("mode") == "memory":
        return len(subprocess.run(argv, stdout=subprocess.PIPE, **keywords).stdout)
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, bufsize=0, **keywords)
    piece, total = bytearray(64 << 10), 0
    while got := child.stdout.readinto(piece):
        total += got
    child.wait()
    return total


def pipe(job):
    before, begin, totals = cpu(), time.monotonic_ns(), []
    threads = [threading.Thread(target=lambda: totals.append(read(job))) for _ in range(int(job.get("children", 1)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"bytes={sum(totals)} ns={time.monotonic_ns() - begin} cpu={cpu() - before}"


def touch(job):
    pages = mmap.mmap(-1, max(int(job.get("bytes", 0)), 4096), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(pages), 4096):
        pages[at] = 1
    touched.append(pages)
    return ""


def open_many(job):
    for _ in range(int(job.get("fds", 0))):
        os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    return ""


def neighbour(_job):
    raise ValueError("a thread of it is never busy beside another one: the interpreter's lock")


VERBS = {
    "about": lambda _job: "version=" + platform.python_version(),
    "spawn": spawn,
    "hold": hold,
    "cancel": cancel,
    "latency": latency,
    "pipe": pipe,
    "touch": touch,
    "open": open_many,
    "neighbour": neighbour,
}


def main():
    for line in sys.stdin:
        verb, *pairs = line.split()
        job = dict(pair.split("=", 1) for pair in pairs)
        try:
            print("ok", VERBS[verb](job), flush=True)
        except Exception as error:
            print("no", str(error).replace("\n", " "), flush=True)
    cancel({})


main()
