/* The launcher of netlib's CNI plugins: hands one call to netlibd and prints its answer.
 *
 * One rule: nothing is decided here, and nothing is done twice. Where netlibd certainly has not begun the call (it is not
 * there, it did not greet, the request did not reach it whole, it answered "not mine"), this process executes Python, which does
 * the same from the start. From then on only netlibd's answer counts; without one the call ends with the code 11, "try again
 * later".
 *
 * Compiled by `netlib cni install`, which defines as strings MARKER, PYTHON (the interpreter), BOOTSTRAP (its program), STATE_DIR,
 * RUN_DIR and RELEASE, and the number DEADLINE (seconds). How both sides speak is written in wire.py beside this file.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_STDIN (16 << 20)
#define MAX_REQUEST (4 << 20)
#define MAX_ANSWER (64 << 20)
#define CHUNK (64 << 10)
#define NAMESPACES 3
#define GREETING_START "{\"netlibd\":"
#define GREETING_MOST 256
#define GREETING_PATIENCE 1000 /* milliseconds: netlibd greets from the loop that accepts, so a silent one is stopped */
#define LOOK_MILLISECONDS 1000 /* between looks at a netlibd that says nothing */
#define MOST_LOOKS 3

enum { IO_FAILURE = 5, TRY_AGAIN = 11 }; /* error codes of the specification */

extern char **environ;

static const char marker[] __attribute__((used)) = MARKER;
static const char *kind;     /* the plugin type, which is the name of this executable */
static int kept_stdin = -1;  /* a file in memory with all of stdin, once that is read */
static int is_silent;        /* whether netlibd is there and did not greet, for which Python need not wait again */
static int64_t until;        /* on CLOCK_MONOTONIC, in milliseconds */

/* --- how it ends ------------------------------------------------------------------------------------------------------ */

static int write_all(int fd, const void *data, size_t size)
{
    const char *at = data;
    while (size > 0) {
        ssize_t written = write(fd, at, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return -1;
        at += written;
        size -= (size_t)written;
    }
    return 0;
}

static _Noreturn void end(const char *output, size_t size, int code)
{
    if (write_all(STDOUT_FILENO, output, size) != 0) {
        dprintf(STDERR_FILENO, "netlib: the answer cannot be written: %s\n", strerror(errno));
        _exit(1);
    }
    _exit(code);
}

/* End with an error object. Both texts are our own and need no escapes. */
static _Noreturn void fail(int code, const char *msg, const char *details)
{
    char text[1024];
    int size = snprintf(text, sizeof text,
                        "{\n    \"cniVersion\": \"1.1.0\",\n    \"code\": %d,\n    \"msg\": \"%s\",\n    \"details\": \"%s\"\n}\n",
                        code, msg, details);
    end(text, (size_t)size, 1);
}

/* Let Python do the call from the start, with the same environment and stdin. */
static _Noreturn void run_python(void)
{
    char *arguments[] = {PYTHON, "-ISXutf8", "-c", BOOTSTRAP, (char *)kind, is_silent ? "silent" : NULL, NULL};
    if (kept_stdin >= 0 && (lseek(kept_stdin, 0, SEEK_SET) != 0 || dup2(kept_stdin, STDIN_FILENO) < 0))
        fail(IO_FAILURE, "stdin cannot be handed over to Python", strerror(errno));
    execve(PYTHON, arguments, environ);
    if (errno == ENOMEM || errno == EAGAIN)
        fail(TRY_AGAIN, "too little memory, or no more processes, to run netlib's Python", "nothing was done; try again");
    fail(IO_FAILURE, "netlib's Python cannot be run; run `netlib cni install` again", strerror(errno));
}

/* --- input ------------------------------------------------------------------------------------------------------------ */

/* Keep the numbers 0 to 2 from being given to files of ours where the caller closed them. */
static void hold_standard_descriptors(void)
{
    int fd = open("/dev/null", O_PATH); /* neither read nor written, as the closed one */
    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = dup(fd);
    if (fd > STDERR_FILENO)
        close(fd);
}

/* Read stdin to its end, or to one byte more than a configuration may have, into a file in memory. */
static void keep_stdin(void)
{
    static char chunk[CHUNK];
    size_t kept = 0;
    int fd = memfd_create("cni-stdin", MFD_CLOEXEC);
    if (fd < 0)
        run_python();
    while (kept <= MAX_STDIN) {
        size_t room = MAX_STDIN + 1 - kept;
        ssize_t got = read(STDIN_FILENO, chunk, room < sizeof chunk ? room : sizeof chunk);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) /* closed or broken: what has come is the configuration */
            break;
        if (write(fd, chunk, (size_t)got) != got)
            fail(IO_FAILURE, "stdin cannot be kept in memory", strerror(errno));
        kept += (size_t)got;
    }
    kept_stdin = fd;
}

static const char *variable(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? value : otherwise;
}

/* --- the request ------------------------------------------------------------------------------------------------------ */

struct request {
    char *bytes;
    size_t size, room;
};

static void put(struct request *request, const void *data, size_t size)
{
    if (size > MAX_REQUEST - request->size)
        run_python();
    if (request->size + size > request->room) {
        request->room = 2 * request->room + size;
        request->bytes = realloc(request->bytes, request->room);
        if (request->bytes == NULL)
            run_python();
    }
    memcpy(request->bytes + request->size, data, size);
    request->size += size;
}

static void put_field(struct request *request, const char *text)
{
    size_t size = strlen(text);
    uint32_t length = htonl((uint32_t)size);
    put(request, &length, sizeof length);
    put(request, text, size);
}

static void write_request(struct request *request, const char *lent)
{
    char path[4096], store[64] = "";
    struct stat found;
    uint32_t length = 0;
    int size = snprintf(path, sizeof path, "%s/netlib.db", variable("NETLIB_STATE_DIR", STATE_DIR));
    if (size < (int)sizeof path && stat(path, &found) == 0)
        snprintf(store, sizeof store, "%llu:%llu", (unsigned long long)found.st_dev, (unsigned long long)found.st_ino);
    put(request, &length, sizeof length);
    put(request, "CNI\1", 4);
    put_field(request, RELEASE);
    put_field(request, store);
    put_field(request, lent);
    put_field(request, kind);
    for (char **entry = environ; *entry != NULL; entry++)
        put_field(request, *entry);
    length = htonl((uint32_t)(request->size - sizeof length));
    memcpy(request->bytes, &length, sizeof length);
}

/* --- the conversation ------------------------------------------------------------------------------------------------- */

static int64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static _Noreturn void fail_untaken(void)
{
    fail(TRY_AGAIN, "netlibd did not take the call in time", "nothing was done; try again");
}

static _Noreturn void go_on_without(void)
{
    is_silent = 1;
    run_python();
}

static int connect_to_netlibd(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = GREETING_PATIENCE / 1000}, deadline = {.tv_sec = DEADLINE};
    struct ucred peer;
    socklen_t size = sizeof peer;
    int folder = open(variable("NETLIB_RUN_DIR", RUN_DIR), O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (folder < 0 || fd < 0)
        run_python();
    /* By way of the folder's descriptor: its path may be too long for a socket's address. */
    snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/control.sock", folder);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        if (errno == EAGAIN) /* its backlog is full, so it accepts nobody */
            go_on_without();
        run_python();
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &deadline, sizeof deadline);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || (peer.uid != 0 && peer.uid != geteuid()))
        run_python();
    return fd;
}

/* Hear netlibd's greeting, a small frame, before anything is sent: the kernel accepts connections for a stopped netlibd, too. */
static void hear_greeting(int fd, int64_t by)
{
    char greeting[sizeof(uint32_t) + GREETING_MOST];
    size_t size = sizeof(uint32_t), known = 0;
    while (known < size) {
        struct pollfd waiting = {.fd = fd, .events = POLLIN};
        int64_t left = by - milliseconds();
        int ready = poll(&waiting, 1, left > 0 ? (int)left : 0);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready == 0)
            go_on_without();
        ssize_t got = recv(fd, greeting + known, size - known, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            run_python();
        known += (size_t)got;
        if (known == sizeof(uint32_t)) {
            uint32_t length;
            memcpy(&length, greeting, sizeof length);
            size += ntohl(length);
            if (size > sizeof greeting)
                run_python();
        }
    }
    if (size < sizeof(uint32_t) + strlen(GREETING_START) ||
        memcmp(greeting + sizeof(uint32_t), GREETING_START, strlen(GREETING_START)) != 0)
        run_python();
}

/* Send the request, and with its first byte the descriptors of our namespaces and of what is lent. */
static void send_request(int fd, const struct request *request, const int *lent, size_t lent_count)
{
    static const char *const namespaces[NAMESPACES] = {"/proc/self/ns/net", "/proc/self/ns/mnt", "/proc/self/ns/user"};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE((NAMESPACES + 2) * sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = request->bytes, .iov_len = request->size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    int descriptors[NAMESPACES + 2];
    for (size_t at = 0; at < NAMESPACES; at++) {
        descriptors[at] = open(namespaces[at], O_RDONLY | O_CLOEXEC);
        if (descriptors[at] < 0)
            run_python();
    }
    memcpy(descriptors + NAMESPACES, lent, lent_count * sizeof(int));
    message.msg_controllen = CMSG_SPACE((NAMESPACES + lent_count) * sizeof(int));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN((NAMESPACES + lent_count) * sizeof(int));
    memcpy(CMSG_DATA(&control.header), descriptors, (NAMESPACES + lent_count) * sizeof(int));
    while (part.iov_len > 0) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            fail_untaken();
        if (sent < 0)
            run_python();
        part.iov_base = (char *)part.iov_base + sent;
        part.iov_len -= (size_t)sent;
        message.msg_control = NULL;
        message.msg_controllen = 0;
    }
}

static int is_stopped(pid_t pid)
{
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (size <= 0)
        return 0;
    text[size] = 0;
    const char *end = strrchr(text, ')');
    return end != NULL && strlen(end) > 2 && (end[2] == 'T' || end[2] == 't');
}

/* Look at netlibd, once a second, while it says nothing: stopped for several looks, it is no use to wait for the deadline. */
static void look_at_netlibd(int fd, int *looks)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || !is_stopped(peer.pid)) {
        *looks = 0;
        return;
    }
    if (++*looks < MOST_LOOKS)
        return;
    char details[160];
    snprintf(details, sizeof details,
             "it finishes the call when it continues; continue it by `kill -CONT %d`, or end it by `kill -KILL %d`",
             (int)peer.pid, (int)peer.pid);
    fail(TRY_AGAIN, "netlibd is stopped, with the call begun", details);
}

static void receive(int fd, void *data, size_t size, int is_first)
{
    char *at = data;
    int looks = 0;
    while (size > 0) {
        struct pollfd waiting = {.fd = fd, .events = POLLIN};
        int64_t left = until - milliseconds();
        int ready = left > 0 ? poll(&waiting, 1, left > LOOK_MILLISECONDS ? LOOK_MILLISECONDS : (int)left) : 0;
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready == 0 && left > LOOK_MILLISECONDS) {
            look_at_netlibd(fd, &looks);
            continue;
        }
        if (ready == 0)
            fail(TRY_AGAIN, "netlibd did not answer in time", "it may still do the call; try again, and see `netlib log`");
        ssize_t got = recv(fd, at, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == ECONNRESET && is_first)
            run_python(); /* netlibd closed its end before it had read all of the request */
        if (got <= 0)
            fail(TRY_AGAIN, "netlibd ended during the call", "what it left half done is undone by the next call; try again");
        at += got;
        size -= (size_t)got;
        is_first = 0;
    }
}

/* --- the answer ------------------------------------------------------------------------------------------------------- */

struct field {
    const char *bytes;
    size_t size;
};

static _Noreturn void fail_unreadable(void)
{
    fail(TRY_AGAIN, "netlibd gave an answer that cannot be read", "it may have done the call; try again, and see `netlib log`");
}

static struct field next_field(struct field *rest)
{
    struct field found;
    uint32_t length;
    if (rest->size < sizeof length)
        fail_unreadable();
    memcpy(&length, rest->bytes, sizeof length);
    found.bytes = rest->bytes + sizeof length;
    found.size = ntohl(length);
    if (found.size > rest->size - sizeof length)
        fail_unreadable();
    rest->bytes = found.bytes + found.size;
    rest->size -= sizeof length + found.size;
    return found;
}

static int is(struct field field, const char *text)
{
    return field.size == strlen(text) && memcmp(field.bytes, text, field.size) == 0;
}

static _Noreturn void take_answer(int fd)
{
    uint32_t length;
    receive(fd, &length, sizeof length, 1);
    struct field rest = {.size = ntohl(length)};
    if (rest.size < 4 || rest.size > MAX_ANSWER)
        fail_unreadable();
    char *body = malloc(rest.size);
    if (body == NULL)
        fail(TRY_AGAIN, "too little memory for netlibd's answer", "it may have done the call; try again, and see `netlib log`");
    receive(fd, body, rest.size, 0);
    if (memcmp(body, "CNI\1", 4) != 0)
        fail_unreadable();
    rest.bytes = body + 4;
    rest.size -= 4;
    struct field outcome = next_field(&rest);
    if (is(outcome, "not mine"))
        run_python();
    struct field code = next_field(&rest);
    struct field output = next_field(&rest);
    struct field error = next_field(&rest);
    if (!is(outcome, "done") || code.size != 1 || rest.size != 0)
        fail_unreadable();
    write_all(STDERR_FILENO, error.bytes, error.size); /* whether or not anybody reads it */
    end(output.bytes, output.size, (unsigned char)code.bytes[0]);
}

int main(void)
{
    const char *path = (const char *)getauxval(AT_EXECFN);
    const char *slash = strrchr(path, '/');
    const char *command = variable("CNI_COMMAND", "");
    const char *netns = variable("CNI_NETNS", "");
    const char *lent = "";
    struct request request = {0};
    int descriptors[2];
    size_t count = 0;
    int64_t greeted_by;
    int fd, netlibd;

    kind = slash != NULL ? slash + 1 : path;
    signal(SIGPIPE, SIG_IGN);
    hold_standard_descriptors();
    greeted_by = milliseconds() + GREETING_PATIENCE;
    netlibd = connect_to_netlibd(); /* first: it greets while the request is made */
    if (*command != '\0' && strcmp(command, "VERSION") != 0) {
        keep_stdin();
        descriptors[count++] = kept_stdin;
        lent = "stdin";
    }
    if (*netns != '\0' && (fd = open(netns, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)) >= 0) {
        lent = count > 0 ? "stdin netns" : "netns";
        descriptors[count++] = fd;
    }
    write_request(&request, lent);
    hear_greeting(netlibd, greeted_by);
    until = milliseconds() + (int64_t)DEADLINE * 1000;
    send_request(netlibd, &request, descriptors, count);
    take_answer(netlibd);
}
