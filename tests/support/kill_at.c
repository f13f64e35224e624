/* Ends the process before its n-th system call that changes something outside of it, or makes that call fail.

   Loaded by LD_PRELOAD. The file that FELIX_PY_KILL_AT names is shared memory: see struct orders. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

struct orders {
    int64_t left;    /* steps until it happens; 0: never */
    int64_t error;   /* errno of that call and all later ones on files; 0: SIGKILL */
    int64_t failing; /* set by the first call that was made to fail */
    char step[40];   /* the call that it hit */
};
static struct orders *orders;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("FELIX_PY_KILL_AT");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    if (mapped != MAP_FAILED)
        orders = mapped;
    unsetenv("LD_PRELOAD"); /* not the programs that it starts */
}

/* Whether this call is to fail. */
static int step(const char *name, int on_file)
{
    if (!orders)
        return 0;
    if (orders->failing && on_file) {
        errno = (int)orders->error;
        return 1;
    }
    if (orders->left <= 0 || (orders->error && !on_file))
        return 0;
    if (__atomic_sub_fetch(&orders->left, 1, __ATOMIC_SEQ_CST) != 0)
        return 0;
    strncpy(orders->step, name, sizeof orders->step - 1);
    if (!orders->error)
        kill(getpid(), SIGKILL);
    orders->failing = 1;
    errno = (int)orders->error;
    return 1;
}

#define WRAP(type, name, parameters, arguments, on_file, counts)                                                   \
    type name parameters                                                                                          \
    {                                                                                                             \
        static type(*real) parameters;                                                                            \
        if (!real)                                                                                                \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                                   \
        if ((counts) && step(#name, on_file))                                                                     \
            return -1;                                                                                            \
        return real arguments;                                                                                    \
    }

WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t length, off64_t at), (fd, data, length, at), 1, 1)
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t length, off_t at), (fd, data, length, at), 1, 1)
WRAP(ssize_t, write, (int fd, const void *data, size_t length), (fd, data, length), 1, fd > 2 && length > 8)
WRAP(int, fdatasync, (int fd), (fd), 1, 1)
WRAP(int, fsync, (int fd), (fd), 1, 1)
WRAP(int, ftruncate64, (int fd, off64_t length), (fd, length), 1, 1)
WRAP(int, unlink, (const char *path), (path), 1, 1)
WRAP(int, rename, (const char *from, const char *to), (from, to), 1, 1)
WRAP(ssize_t, send, (int fd, const void *data, size_t length, int flags), (fd, data, length, flags), 0, length > 8)
WRAP(ssize_t, sendto,
     (int fd, const void *data, size_t length, int flags, const struct sockaddr *to, socklen_t size),
     (fd, data, length, flags, to, size), 0, length > 8)
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags), 0, 1)
WRAP(int, setns, (int fd, int kind), (fd, kind), 0, 1)
