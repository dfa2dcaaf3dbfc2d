// The benchmarks' peer in Go: os/exec, a goroutine for each child in flight. A job is a line `verb key=value …` on stdin, its answer a
// line `ok key=value …` or `no why` on stdout.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

type job map[string]string

func (j job) number(key string, otherwise int) int {
	if n, err := strconv.Atoi(j[key]); err == nil {
		return n
	}
	return otherwise
}

const nobody = 65534

func (j job) args() []string {
	return strings.FieldsFunc(j["args"], func(r rune) bool { return r == ',' })
}

func (j job) command(ctx context.Context) (*exec.Cmd, error) {
	var cmd *exec.Cmd
	if ctx != nil {
		cmd = exec.CommandContext(ctx, j["child"], j.args()...)
	} else {
		cmd = exec.Command(j["child"], j.args()...)
	}
	// Streams are the null device unless they are set.
	if j["stdio"] == "inherit" {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	attr := &syscall.SysProcAttr{}
	switch j["option"] {
	case "":
		return cmd, nil
	case "uid":
		attr.Credential = &syscall.Credential{Uid: nobody, Gid: uint32(os.Getgid())}
	case "gid":
		attr.Credential = &syscall.Credential{Uid: uint32(os.Getuid()), Gid: nobody}
	case "groups":
		attr.Credential = &syscall.Credential{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid()), Groups: []uint32{nobody}}
	case "setsid":
		attr.Setsid = true
	case "process_group":
		attr.Setpgid = true
	case "chroot":
		attr.Chroot = "/"
	case "cwd":
		cmd.Dir = "/"
		return cmd, nil
	default:
		return nil, errors.New("it has no " + j["option"])
	}
	cmd.SysProcAttr = attr
	return cmd, nil
}

func (j job) run() error {
	cmd, err := j.command(nil)
	if err != nil {
		return err
	}
	if j["stdio"] == "capture" {
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_, err = cmd.Output()
		return err
	}
	return cmd.Run()
}

func now() int64 {
	var t syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano()
}

func cpu() int64 {
	sum := int64(0)
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var usage syscall.Rusage
		syscall.Getrusage(who, &usage)
		sum += usage.Utime.Nano() + usage.Stime.Nano()
	}
	return sum
}

func quantiles(each []int64) string {
	sort.Slice(each, func(i, k int) bool { return each[i] < each[k] })
	at := func(q float64) int64 {
		if len(each) == 0 {
			return 0
		}
		return each[int(float64(len(each)-1)*q)]
	}
	return fmt.Sprintf(" p50=%d p99=%d p999=%d max=%d", at(0.5), at(0.99), at(0.999), at(1))
}

func (j job) load(n int64) ([]int64, error) {
	var all []int64
	var failed error
	var lock sync.Mutex
	var group sync.WaitGroup
	until := time.Now().Add(time.Duration(j.number("ms", 60000)) * time.Millisecond)
	left := atomic.Int64{}
	left.Store(n)
	work := func() {
		defer group.Done()
		var each []int64
		var err error
		for err == nil && time.Now().Before(until) && left.Add(-1) >= 0 {
			start := time.Now()
			err = j.run()
			each = append(each, int64(time.Since(start)))
		}
		lock.Lock()
		defer lock.Unlock()
		all = append(all, each...)
		if err != nil {
			failed = err
		}
	}
	workers := max(j.number("k", 1), j.number("threads", 1))
	group.Add(workers)
	if workers == 1 {
		work()
	} else {
		for i := 0; i < workers; i++ {
			go work()
		}
		group.Wait()
	}
	return all, failed
}

func (j job) spawn() (string, error) {
	before, begin := cpu(), time.Now()
	each, err := j.load(int64(j.number("n", 1)))
	ns := time.Since(begin)
	n := len(each)
	return fmt.Sprintf("n=%d ns=%d cpu=%d%s", n, ns, cpu()-before, quantiles(each)), err
}

// One context for all of them, and a goroutine that waits for each.
type held struct {
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup
	n      int
}

func (h *held) hold(j job) (string, error) {
	if h.ctx == nil {
		h.ctx, h.cancel = context.WithCancel(context.Background())
	}
	for i := j.number("n", 0); i > 0; i-- {
		cmd, err := j.command(h.ctx)
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return "", err
		}
		h.n++
		h.group.Add(1)
		go func() {
			defer h.group.Done()
			cmd.Wait()
		}()
	}
	return fmt.Sprintf("n=%d", h.n), nil
}

func (h *held) end() (string, error) {
	if h.ctx == nil {
		return "n=0 ns=0", nil
	}
	begin := time.Now()
	h.cancel()
	h.group.Wait()
	answer := fmt.Sprintf("n=%d ns=%d", h.n, time.Since(begin))
	h.ctx, h.n = nil, 0
	return answer, nil
}

func stamp(file string) int64 {
	content, err := os.ReadFile(file)
	if err != nil || len(content) < 8 {
		return 0
	}
	return int64(binary.NativeEndian.Uint64(content))
}

func (j job) latency() (string, error) {
	var each []int64
	for i := j.number("n", 1); i > 0; i-- {
		begin := now()
		cmd, err := j.command(nil)
		if err == nil {
			err = cmd.Start()
		}
		started := now()
		if err != nil {
			return "", err
		}
		if j["kind"] == "cancel" {
			time.Sleep(300 * time.Microsecond)
			begin = now()
			cmd.Process.Kill()
		}
		cmd.Wait()
		end := now()
		switch j["kind"] {
		case "exit":
			each = append(each, end-stamp(j["file"]))
		case "exec":
			each = append(each, stamp(j["file"])-begin)
		case "call":
			each = append(each, started-begin)
		default:
			each = append(each, end-begin)
		}
	}
	return fmt.Sprintf("n=%d%s", len(each), quantiles(each)), nil
}

func (j job) read() (int64, error) {
	cmd, err := j.command(nil)
	if err != nil {
		return 0, err
	}
	if j["mode"] == "memory" {
		out, err := cmd.Output()
		return int64(len(out)), err
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return 0, err
	}
	piece, total := make([]byte, 64<<10), int64(0)
	for {
		n, err := stdout.Read(piece)
		total += int64(n)
		if err == io.EOF {
			return total, cmd.Wait()
		}
		if err != nil {
			return total, err
		}
	}
}

func (j job) pipe() (string, error) {
	before, begin := cpu(), time.Now()
	var total atomic.Int64
	var failed atomic.Value
	var group sync.WaitGroup
	for i := j.number("children", 1); i > 0; i-- {
		group.Add(1)
		go func() {
			defer group.Done()
			n, err := j.read()
			total.Add(n)
			if err != nil {
				failed.Store(err)
			}
		}()
	}
	group.Wait()
	if err, ok := failed.Load().(error); ok {
		return "", err
	}
	return fmt.Sprintf("bytes=%d ns=%d cpu=%d", total.Load(), time.Since(begin), cpu()-before), nil
}

const pageBytes = 4096

func pages(bytes int) ([]byte, error) {
	base, err := syscall.Mmap(-1, 0, bytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err == nil {
		syscall.Madvise(base, syscall.MADV_NOHUGEPAGE)
	}
	return base, err
}

func (j job) neighbour() (string, error) {
	var stop atomic.Bool
	var each []int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if j["kind"] == "ticks" {
			for at := now(); !stop.Load(); {
				at += 1_000_000
				until := syscall.NsecToTimespec(at)
				syscall.Syscall6(syscall.SYS_CLOCK_NANOSLEEP, 1, 1, uintptr(unsafe.Pointer(&until)), 0, 0, 0)
				each = append(each, now()-at)
			}
			return
		}
		for !stop.Load() {
			patch, err := pages(256 * pageBytes)
			if err != nil {
				return
			}
			for i := 0; i < 256; i++ {
				start := now()
				patch[i*pageBytes] = 1
				each = append(each, now()-start)
			}
			syscall.Munmap(patch)
		}
	}()
	spawned := 0
	var err error
	if j.number("spawn", 0) == 1 {
		var times []int64
		times, err = j.load(1 << 40)
		spawned = len(times)
	} else {
		time.Sleep(time.Duration(j.number("ms", 0)) * time.Millisecond)
	}
	stop.Store(true)
	<-done
	return fmt.Sprintf("n=%d spawned=%d%s", len(each), spawned, quantiles(each)), err
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<16), 1<<16)
	holding := &held{}
	for in.Scan() {
		words := strings.Fields(in.Text())
		if len(words) == 0 {
			continue
		}
		j := job{}
		for _, word := range words[1:] {
			if key, value, ok := strings.Cut(word, "="); ok {
				j[key] = value
			}
		}
		if j["option"] == "path" {
			// LookPath looks in the parent's PATH, whatever the child's is.
			os.Setenv("PATH", filepath.Dir(j["child"]))
			j["child"], j["option"] = filepath.Base(j["child"]), ""
		}
		answer, err := "", error(nil)
		switch words[0] {
		case "about":
			answer = "version=" + strings.TrimPrefix(runtime.Version(), "go")
		case "spawn":
			answer, err = j.spawn()
		case "hold":
			answer, err = holding.hold(j)
		case "cancel":
			answer, err = holding.end()
		case "latency":
			answer, err = j.latency()
		case "pipe":
			answer, err = j.pipe()
		case "neighbour":
			answer, err = j.neighbour()
		case "touch":
			var base []byte
			base, err = pages(max(j.number("bytes", 0), pageBytes))
			for i := 0; i < len(base); i += pageBytes {
				base[i] = 1
			}
		case "open":
			for i := j.number("fds", 0); i > 0 && err == nil; i-- {
				_, err = syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
			}
		default:
			err = errors.New("an unknown verb: " + words[0])
		}
		if err != nil {
			fmt.Println("no", err)
		} else {
			fmt.Println("ok", answer)
		}
	}
	holding.end()
}
