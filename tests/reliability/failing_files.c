// Preloaded into a process, has one operation on files below a folder fail: the n-th.
//
// `failing_arm(folder, n, error, of_reads)` begins to count, what reads or what writes; error 0 is
// a write of half of what was given, which is no failure. `failing_disarm()` returns how many
// operations there were, and whether one failed is told by `failing_fired()`. What cleans up
// (unlink, rmdir, close) does not fail.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_int armed, count, fire_at, fired;
static int error_number, counts_reads;

void failing_arm(const char* path, int n, int error, int of_reads) {
  snprintf(folder, sizeof(folder), "%s", path);
  count = 0;
  fired = 0;
  fire_at = n;
  error_number = error;
  counts_reads = of_reads;
  armed = 1;
}
int failing_disarm(void) {
  armed = 0;
  return count;
}
int failing_fired(void) { return fired; }

static int is_one(const char* path) {
  if (path == NULL || strncmp(path, folder, strlen(folder)) != 0) return 0;
  if (atomic_fetch_add(&count, 1) + 1 != fire_at) return 0;
  fired = 1;
  errno = error_number;
  return 1;
}

static int is_one_at(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof(path) - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return is_one(path);
}

// Whether this operation is the one. `is_write`: one that may be short.
static int fails(const char* path, int is_write) {
  return armed && !counts_reads && (error_number != 0 || is_write) && is_one(path);
}
static int fails_at(int fd, int is_write) {
  return armed && !counts_reads && (error_number != 0 || is_write) && is_one_at(fd);
}
// The same of what reads.
static int read_fails(const char* path) { return armed && counts_reads && is_one(path); }
static int read_fails_at(int fd) { return armed && counts_reads && is_one_at(fd); }

#define NEXT(name) __typeof__(&name) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                          \
  int name(const char* path, int flags, ...) {                              \
    NEXT(name);                                                             \
    va_list more;                                                           \
    va_start(more, flags);                                                  \
    const int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0; \
    va_end(more);                                                           \
    const int writes = flags & (O_WRONLY | O_RDWR);                         \
    if (writes ? fails(path, 0) : read_fails(path)) return -1;              \
    return next(path, flags, mode);                                         \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                        \
  int name(int at, const char* path, int flags, ...) {                      \
    NEXT(name);                                                             \
    va_list more;                                                           \
    va_start(more, flags);                                                  \
    const int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0; \
    va_end(more);                                                           \
    const int writes = flags & (O_WRONLY | O_RDWR);                         \
    if (writes ? fails(path, 0) : read_fails(path)) return -1;              \
    return next(at, path, flags, mode);                                     \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                      \
  FILE* name(const char* path, const char* mode) {                       \
    NEXT(name);                                                          \
    if (mode[0] == 'r' ? read_fails(path) : fails(path, 0)) return NULL; \
    return next(path, mode);                                             \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void* data, size_t size) {
  NEXT(write);
  if (!fails_at(fd, 1)) return next(fd, data, size);
  return error_number == 0 ? next(fd, data, (size + 1) / 2) : -1;
}
#define PWRITE(name, offset_type)                                       \
  ssize_t name(int fd, const void* data, size_t size, offset_type at) { \
    NEXT(name);                                                         \
    if (!fails_at(fd, 1)) return next(fd, data, size, at);              \
    return error_number == 0 ? next(fd, data, (size + 1) / 2, at) : -1; \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

size_t fwrite(const void* data, size_t size, size_t num, FILE* file) {
  NEXT(fwrite);
  return error_number != 0 && fails_at(fileno(file), 0) ? 0 : next(data, size, num, file);
}

ssize_t read(int fd, void* data, size_t size) {
  NEXT(read);
  return read_fails_at(fd) ? -1 : next(fd, data, size);
}
#define PREAD(name, offset_type)                                  \
  ssize_t name(int fd, void* data, size_t size, offset_type at) { \
    NEXT(name);                                                   \
    return read_fails_at(fd) ? -1 : next(fd, data, size, at);     \
  }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

size_t fread(void* data, size_t size, size_t num, FILE* file) {
  NEXT(fread);
  return read_fails_at(fileno(file)) ? 0 : next(data, size, num, file);
}
ssize_t copy_file_range(int from, off64_t* from_at, int to, off64_t* to_at, size_t size,
                        unsigned flags) {
  NEXT(copy_file_range);
  if (!fails_at(to, 1)) return next(from, from_at, to, to_at, size, flags);
  return error_number == 0 ? next(from, from_at, to, to_at, (size + 1) / 2, flags) : -1;
}

#define OF_DESCRIPTOR(name)                 \
  int name(int fd) {                        \
    NEXT(name);                             \
    return fails_at(fd, 0) ? -1 : next(fd); \
  }
OF_DESCRIPTOR(fsync)
OF_DESCRIPTOR(fdatasync)

int posix_fallocate(int fd, off_t at, off_t size) {
  NEXT(posix_fallocate);
  return fails_at(fd, 0) ? error_number : next(fd, at, size);
}
int posix_fallocate64(int fd, off64_t at, off64_t size) {
  NEXT(posix_fallocate64);
  return fails_at(fd, 0) ? error_number : next(fd, at, size);
}
int rename(const char* from, const char* to) {
  NEXT(rename);
  return fails(to, 0) ? -1 : next(from, to);
}
int renameat(int from_at, const char* from, int to_at, const char* to) {
  NEXT(renameat);
  return fails(to, 0) ? -1 : next(from_at, from, to_at, to);
}
int link(const char* from, const char* to) {
  NEXT(link);
  return fails(to, 0) ? -1 : next(from, to);
}
int linkat(int from_at, const char* from, int to_at, const char* to, int flags) {
  NEXT(linkat);
  return fails(to, 0) ? -1 : next(from_at, from, to_at, to, flags);
}
int mkdir(const char* path, mode_t mode) {
  NEXT(mkdir);
  return fails(path, 0) ? -1 : next(path, mode);
}
int mkdirat(int at, const char* path, mode_t mode) {
  NEXT(mkdirat);
  return fails(path, 0) ? -1 : next(at, path, mode);
}
