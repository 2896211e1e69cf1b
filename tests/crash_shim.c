// SPDX-License-Identifier: Apache-2.0
//
// Kills a process with SIGKILL just before its n-th change to the files below a folder, or makes that change and all
// later ones fail as on a full disk, or lists the changes.
//
//     cc -shared -fPIC -O1 -o crash_shim.so tests/crash_shim.c -ldl
//     LD_PRELOAD=./crash_shim.so python ...
//
// The process starts the count by calling crash_shim_watch(folder, n, trace) through ctypes, so that one process can
// import everything and fork a child for each n. After crash_shim_refuse(errno) nothing is killed: operations that
// need room (a write, a longer file, a sync, a new folder) fail with that error, deletions and renames do not. With
// n = 0 nothing is killed or refused. With a trace, the n-th line of that file is the n-th change, "operation path".
// After crash_shim_mark(path) that file is made when something is killed or refused.
//
// After crash_shim_set_clock_back(seconds) the process reads a wall clock that was set back; file times stay right.
//
// The shim counts calls of these functions of the C library: Python's file objects, Arrow's, most of Rust's. It misses
// fwrite, which numpy's tofile uses, direct system calls, such as some of Rust's renames, and other processes. Threads
// may count in any order.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char watched[4096];     // the folder; empty until crash_shim_watch
static long kill_before;       // number of the change to prevent
static long changes;           // so far
static int trace_file = -1;
static int refuse_with;        // errno to fail with; 0: kill

void crash_shim_refuse(int error)
{
    refuse_with = error;
}

static char marked[4096];  // empty: none

void crash_shim_mark(const char *path)
{
    snprintf(marked, sizeof marked, "%s", path);
}

static void mark(void)
{
    if (marked[0])
        syscall(SYS_close, syscall(SYS_openat, AT_FDCWD, marked, O_CREAT | O_WRONLY, 0644));
}

static long clock_back;  // seconds

void crash_shim_set_clock_back(long seconds)
{
    clock_back = seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int status = (int)syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME)
        now->tv_sec -= clock_back;
    return status;
}

void crash_shim_watch(const char *folder, long before, const char *trace)
{
    snprintf(watched, sizeof watched, "%s", folder);
    kill_before = before;
    changes = 0;
    trace_file = trace[0] ? (int)syscall(SYS_openat, AT_FDCWD, trace, O_CREAT | O_WRONLY | O_TRUNC, 0644) : -1;
}

// Counts a change of an absolute path; returns whether it shall fail.
static int count_path(const char *operation, const char *path)
{
    size_t length = strlen(watched);
    if (length == 0 || strncmp(path, watched, length) != 0 || (path[length] != '/' && path[length] != 0))
        return 0;
    long number = __sync_add_and_fetch(&changes, 1);
    if (number == kill_before && !refuse_with) {
        mark();
        syscall(SYS_kill, getpid(), SIGKILL);
    }
    if (trace_file >= 0) {
        char line[8300];
        int size = snprintf(line, sizeof line, "%s %s\n", operation, path);
        syscall(SYS_write, trace_file, line, size);
    }
    return refuse_with && kill_before && number >= kill_before;
}

static int refuse(void)
{
    mark();
    errno = refuse_with;
    return -1;
}

// Finds the path of a descriptor; returns 0 if it is no file.
static int name_descriptor(int descriptor, char *path, size_t size)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, size - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return 1;
}

static int count_descriptor(const char *operation, int descriptor)
{
    char path[4096];
    if (watched[0] && name_descriptor(descriptor, path, sizeof path))
        return count_path(operation, path);
    return 0;
}

// Counts a change of a path that may be relative to the working directory, or to a folder's descriptor, as in
// shutil.rmtree.
static int count_at(const char *operation, int folder, const char *path)
{
    char whole[8200];
    if (!watched[0])
        return 0;
    if (path[0] == '/')
        whole[0] = 0;
    else if (folder == AT_FDCWD ? syscall(SYS_getcwd, whole, 4096) <= 0 : !name_descriptor(folder, whole, 4096))
        return 0;
    else
        strcat(whole, "/");
    strncat(whole, path, sizeof whole - strlen(whole) - 1);
    return count_path(operation, whole);
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) \
        real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int descriptor, const void *bytes, size_t size)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    if (count_descriptor("write", descriptor))
        return refuse();
    return real(descriptor, bytes, size);
}

ssize_t writev(int descriptor, const struct iovec *parts, int number)
{
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (count_descriptor("write", descriptor))
        return refuse();
    return real(descriptor, parts, number);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t size, off64_t offset)
{
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (count_descriptor("write", descriptor))
        return refuse();
    return real(descriptor, bytes, size, offset);
}

int ftruncate64(int descriptor, off64_t size)
{
    REAL(int, "ftruncate64", int, off64_t);
    if (count_descriptor("truncate", descriptor))
        return refuse();
    return real(descriptor, size);
}

int fsync(int descriptor)
{
    REAL(int, "fsync", int);
    if (count_descriptor("fsync", descriptor))
        return refuse();
    return real(descriptor);
}

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    count_at("rename", AT_FDCWD, to);
    return real(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    if (count_at("mkdir", AT_FDCWD, path))
        return refuse();
    return real(path, mode);
}

int unlink(const char *path)
{
    REAL(int, "unlink", const char *);
    count_at("unlink", AT_FDCWD, path);
    return real(path);
}

int rmdir(const char *path)
{
    REAL(int, "rmdir", const char *);
    count_at("rmdir", AT_FDCWD, path);
    return real(path);
}

int unlinkat(int folder, const char *path, int flags)
{
    REAL(int, "unlinkat", int, const char *, int);
    count_at("unlink", folder, path);
    return real(folder, path, flags);
}
