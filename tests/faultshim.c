/* Makes the n-th call of a kind fail, or kills the process there. For LD_PRELOAD.
 *
 * FAULT_FILE names a file that holds a `struct fault` (tests/faults.py writes it). It is mapped shared, so that orders
 * reach a process that runs already and counts outlive a SIGKILL. Calls on files count only below `root`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, RENAME = 4, LINK = 8, UNLINK = 16, OPEN = 32, MKDIR = 64, TRUNCATE = 128, MEMORY = 256, THREAD = 512 };

struct fault {
    int64_t kinds;  /* which calls count */
    int64_t at;     /* the call that fails, from 1; 0 to count only */
    int64_t error;  /* errno; 0 for SIGKILL */
    int64_t sticky; /* all later calls fail too, as on a disk that stays full */
    int64_t size;   /* bytes from which memory counts */
    int64_t armed;
    int64_t seen;
    int64_t fired;
    char root[PATH_MAX];
};

static struct fault *fault;

__attribute__((constructor)) static void map_orders(void) {
    const char *name = getenv("FAULT_FILE");
    int fd = name ? (int)syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *place = mmap(NULL, sizeof *fault, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (place != MAP_FAILED)
        fault = place;
}

/* Whether this call is the one; does not return when it is the process's last. */
static int strikes(void) {
    int64_t number = __atomic_add_fetch(&fault->seen, 1, __ATOMIC_SEQ_CST);
    if (!fault->at || (fault->sticky ? number < fault->at : number != fault->at))
        return 0;
    __atomic_add_fetch(&fault->fired, 1, __ATOMIC_SEQ_CST);
    return 1;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static int fail(void) {
    if (!fault->error)
        die();
    errno = (int)fault->error;
    return -1;
}

static int listens(int kind) { return fault && fault->armed && (fault->kinds & kind); }

static int below_root(const char *path) {
    size_t length = strlen(fault->root);
    return length && !strncmp(path, fault->root, length) && (path[length] == '/' || !path[length]);
}

static int is_path(int folder, const char *path) {
    char base[PATH_MAX], link[64];
    if (path[0] == '/')
        return below_root(path);
    if (folder == AT_FDCWD)
        return getcwd(base, sizeof base) && below_root(base);
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, base, sizeof base - 1);
    base[length < 0 ? 0 : length] = 0;
    return below_root(base);
}

static int is_file(int fd) { return is_path(fd, ""); }

#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)
#define STRIKES_PATH(kind, folder, path) (listens(kind) && is_path(folder, path) && strikes())
#define STRIKES_FILE(kind, fd) (listens(kind) && is_file(fd) && strikes())

/* A process that is killed while it writes has written a part. */
static int fail_write(int fd, const void *data, size_t length) {
    if (!fault->error && length)
        syscall(SYS_write, fd, data, length / 2);
    return fail();
}

ssize_t write(int fd, const void *data, size_t length) {
    return STRIKES_FILE(WRITE, fd) ? fail_write(fd, data, length) : syscall(SYS_write, fd, data, length);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    if (STRIKES_FILE(WRITE, fd)) {
        if (!fault->error && length)
            syscall(SYS_pwrite64, fd, data, length / 2, offset);
        return fail();
    }
    return syscall(SYS_pwrite64, fd, data, length, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return pwrite(fd, data, length, offset); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return STRIKES_FILE(WRITE, fd) ? fail() : syscall(SYS_writev, fd, parts, count);
}

int fsync(int fd) { return STRIKES_FILE(SYNC, fd) ? fail() : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return STRIKES_FILE(SYNC, fd) ? fail() : (int)syscall(SYS_fdatasync, fd); }
int ftruncate(int fd, off_t size) { return STRIKES_FILE(TRUNCATE, fd) ? fail() : (int)syscall(SYS_ftruncate, fd, size); }
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int rename(const char *old, const char *new) {
    return STRIKES_PATH(RENAME, AT_FDCWD, new) ? fail() : REAL(rename, old, new);
}
int renameat(int from, const char *old, int to, const char *new) {
    return STRIKES_PATH(RENAME, to, new) ? fail() : REAL(renameat, from, old, to, new);
}
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    return STRIKES_PATH(RENAME, to, new) ? fail() : REAL(renameat2, from, old, to, new, flags);
}
int link(const char *old, const char *new) { return STRIKES_PATH(LINK, AT_FDCWD, new) ? fail() : REAL(link, old, new); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    return STRIKES_PATH(LINK, to, new) ? fail() : REAL(linkat, from, old, to, new, flags);
}
int unlink(const char *path) { return STRIKES_PATH(UNLINK, AT_FDCWD, path) ? fail() : REAL(unlink, path); }
int unlinkat(int folder, const char *path, int flags) {
    return STRIKES_PATH(UNLINK, folder, path) ? fail() : REAL(unlinkat, folder, path, flags);
}
int mkdir(const char *path, mode_t mode) {
    return STRIKES_PATH(MKDIR, AT_FDCWD, path) ? fail() : REAL(mkdir, path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
    return STRIKES_PATH(MKDIR, folder, path) ? fail() : REAL(mkdirat, folder, path, mode);
}

static int open_any(int folder, const char *path, int flags, mode_t mode) {
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    return writes && STRIKES_PATH(OPEN, folder, path) ? fail() : (int)syscall(SYS_openat, folder, path, flags, mode);
}
#define OPENS(name, folder, ...)                                  \
    int name(__VA_ARGS__, int flags, ...) {                       \
        mode_t mode = 0;                                          \
        if (flags & (O_CREAT | O_TMPFILE)) {                      \
            va_list rest;                                         \
            va_start(rest, flags);                                \
            mode = va_arg(rest, mode_t);                          \
            va_end(rest);                                         \
        }                                                         \
        return open_any(folder, path, flags, mode);               \
    }
OPENS(open, AT_FDCWD, const char *path)
OPENS(open64, AT_FDCWD, const char *path)
OPENS(openat, folder, int folder, const char *path)
OPENS(openat64, folder, int folder, const char *path)
int __open_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* glibc's own names, because looking functions up takes memory. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static int runs_out(size_t size) {
    if (!listens(MEMORY) || size < (size_t)fault->size || !strikes())
        return 0;
    if (!fault->error)
        die();
    errno = ENOMEM;
    return 1;
}
void *malloc(size_t size) { return runs_out(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) {
    size_t all;
    return !__builtin_mul_overflow(count, size, &all) && runs_out(all) ? NULL : __libc_calloc(count, size);
}
void *realloc(void *old, size_t size) { return runs_out(size) ? NULL : __libc_realloc(old, size); }
void *memalign(size_t step, size_t size) { return runs_out(size) ? NULL : __libc_memalign(step, size); }
void *aligned_alloc(size_t step, size_t size) { return memalign(step, size); }
int posix_memalign(void **place, size_t step, size_t size) {
    if (runs_out(size))
        return ENOMEM;
    void *made = __libc_memalign(step, size);
    if (!made)
        return ENOMEM;
    *place = made;
    return 0;
}
void *mmap(void *place, size_t size, int access, int flags, int fd, off_t offset) {
    if ((flags & MAP_ANONYMOUS) && !(flags & MAP_STACK) && runs_out(size))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, place, size, access, flags, fd, offset);
}
void *mmap64(void *place, size_t size, int access, int flags, int fd, off64_t offset) {
    return mmap(place, size, access, flags, fd, offset);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *with) {
    if (listens(THREAD) && strikes()) {
        if (!fault->error)
            die();
        return (int)fault->error;
    }
    return REAL(pthread_create, thread, how, run, with);
}
