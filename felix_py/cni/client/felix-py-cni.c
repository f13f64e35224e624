/* felix-py-cni: what a container runtime executes as the CNI plugin "felix-py-cni".
 *
 * It passes the call (CNI_* environment and stdin) to the agent's Unix socket and prints the answer. It decides
 * nothing and parses no JSON; felix_py/cni/protocol.py describes the framing. Without an agent it answers VERSION,
 * answers error 11 (try again later) to calls that need the agent, to an ADD after some seconds, and keeps DEL and
 * GC, which the runtime does not repeat, in a spool directory that the agent drains when it starts. An ADD that an
 * agent hands back because it stops waits for the next one in the same way.
 *
 * The socket's path is the content of the file "<this binary>.socket", or DEFAULT_SOCKET without that file. The
 * spool is the directory "spool" beside the socket.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/felix-py/cni.sock"
#define TIMEOUT_SECONDS 60
#define AWAY_SECONDS 10 /* an ADD outlasts the restart of an agent; a runtime that is told to try again backs off */
#define TRY_AGAIN 11
#define HANDED_BACK 75 /* felix_py/cni/protocol.py */

extern char **environ;

struct buffer {
	char *data;
	size_t length, room;
};

static char socket_path[PATH_MAX] = DEFAULT_SOCKET;
static char timeout_message[PATH_MAX + 256];

/* A CNI error on stdout (specification, "Error"), exit 1. Messages hold no byte that JSON would need escaped. */
static void fail(const char *format, ...) {
	va_list arguments;
	alarm(0);
	printf("{\"cniVersion\": \"1.0.0\", \"code\": %d, \"msg\": \"felix-py-cni: ", TRY_AGAIN);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\"}\n");
	fflush(stdout);
	_exit(1);
}

static void on_alarm(int signal_number) {
	(void)signal_number;
	if (write(STDOUT_FILENO, timeout_message, strlen(timeout_message)) < 0)
		_exit(2);
	_exit(1);
}

static void reserve(struct buffer *buffer, size_t more) {
	if (buffer->room - buffer->length >= more)
		return;
	buffer->room = (buffer->length + more) * 2;
	buffer->data = realloc(buffer->data, buffer->room);
	if (!buffer->data)
		fail("out of memory");
}

static void append(struct buffer *buffer, const char *data, size_t length) {
	reserve(buffer, length);
	memcpy(buffer->data + buffer->length, data, length);
	buffer->length += length;
}

/* Everything up to end of file; false on an error. */
static int read_all(int fd, struct buffer *buffer) {
	for (;;) {
		reserve(buffer, 65536);
		ssize_t got = read(fd, buffer->data + buffer->length, buffer->room - buffer->length);
		if (got == 0)
			return 1;
		if (got > 0)
			buffer->length += got;
		else if (errno != EINTR)
			return 0;
	}
}

static int write_all(int fd, const char *data, size_t length) {
	while (length > 0) {
		ssize_t done = write(fd, data, length);
		if (done >= 0) {
			data += done;
			length -= done;
		} else if (errno != EINTR)
			return 0;
	}
	return 1;
}

static void find_socket(void) {
	char own[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", own, sizeof own - sizeof ".socket");
	if (length < 0)
		return;
	strcpy(own + length, ".socket");
	int fd = open(own, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	length = read(fd, socket_path, sizeof socket_path - 1);
	close(fd);
	socket_path[length > 0 ? length : 0] = 0;
	for (char *c = socket_path; *c; c++) /* one line, without bytes that JSON would need escaped */
		if ((unsigned char)*c < ' ' || *c == '"' || *c == '\\')
			*c = 0;
}

/* A connected socket, or -1 when nobody listens. */
static int connect_agent(void) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(socket_path) >= sizeof address.sun_path)
		fail("the socket path %s is too long", socket_path);
	strcpy(address.sun_path, socket_path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		fail("no socket: %s", strerror(errno));
	if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	close(fd);
	return -1;
}

/* The same for an agent that may be about to come. */
static int await_agent(void) {
	const struct timespec rest = {.tv_nsec = 20 * 1000 * 1000};
	struct timespec now, first;
	int fd = connect_agent();
	clock_gettime(CLOCK_MONOTONIC, &first);
	for (now = first; fd < 0 && now.tv_sec - first.tv_sec < AWAY_SECONDS; clock_gettime(CLOCK_MONOTONIC, &now)) {
		nanosleep(&rest, NULL);
		fd = connect_agent();
	}
	return fd;
}

/* Read until the whole answer is there, which the agent need not end by closing. Returns the exit code, and in start
 * where the output begins; -1 when the agent went away before, or says something else. */
static int read_answer(int fd, struct buffer *answer, size_t *start) {
	for (;;) {
		int code, head = 0;
		size_t length;
		reserve(answer, 65536);
		ssize_t got = read(fd, answer->data + answer->length, answer->room - answer->length - 1);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return -1;
		answer->length += got;
		answer->data[answer->length] = 0;
		if (!memchr(answer->data, '\n', answer->length))
			continue;
		if (sscanf(answer->data, "%d %zu%n", &code, &length, &head) != 2 || answer->data[head] != '\n')
			return -1;
		*start = head + 1;
		if (answer->length - *start > length)
			return -1;
		if (answer->length - *start == length)
			return code;
	}
}

/* Send the call and print the answer. Returns the plugin's exit code, or -1 when there was no whole answer; of what
 * is handed back nothing is printed. */
static int ask(int fd, const struct buffer *call) {
	struct buffer answer = {0};
	size_t start = 0;
	int code = write_all(fd, call->data, call->length) ? read_answer(fd, &answer, &start) : -1;
	close(fd);
	if (code >= 0 && code != HANDED_BACK) {
		alarm(0);
		if (!write_all(STDOUT_FILENO, answer.data + start, answer.length - start))
			_exit(2);
	}
	free(answer.data);
	return code;
}

/* Keep the call for the agent's next start: written and synced under a hidden name, then renamed. */
static void spool(int directory, const char *spool_path, const struct buffer *call) {
	struct timespec now;
	char name[80], hidden[sizeof name + 1];
	clock_gettime(CLOCK_REALTIME, &now);
	snprintf(name, sizeof name, "%020lld-%09ld-%d", (long long)now.tv_sec, now.tv_nsec, (int)getpid());
	snprintf(hidden, sizeof hidden, ".%s", name);
	int fd = openat(directory, hidden, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		fail("the agent is not running and %s cannot be written: %s", spool_path, strerror(errno));
	if (!write_all(fd, call->data, call->length) || fsync(fd) || close(fd) ||
	    renameat(directory, hidden, directory, name) || fsync(directory)) {
		int error = errno;
		unlinkat(directory, hidden, 0);
		fail("the agent is not running and %s cannot be written: %s", spool_path, strerror(error));
	}
}

/* For DEL and GC when the agent is away. The shared lock is held from before the last attempt to connect until the
 * call is in the spool: an agent that starts in between takes the exclusive lock before it drains, so it sees it. */
static int ask_or_spool(const struct buffer *call) {
	char path[PATH_MAX + 8];
	strcpy(path, socket_path);
	char *slash = strrchr(path, '/');
	if (!slash)
		fail("the socket path %s is not absolute", socket_path);
	*slash = 0;
	mkdir(path, 0755);
	strcat(path, "/spool");
	mkdir(path, 0700);
	int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (directory < 0 || flock(directory, LOCK_SH))
		fail("the agent is not running and %s cannot be used: %s", path, strerror(errno));
	int fd = connect_agent();
	if (fd >= 0) {
		int code = ask(fd, call);
		if (code >= 0)
			return code;
	}
	spool(directory, path, call);
	return 0;
}

static void build_call(struct buffer *call) {
	struct buffer environment = {0}, input = {0};
	char head[96];
	if (!read_all(STDIN_FILENO, &input))
		fail("cannot read stdin: %s", strerror(errno));
	for (char **entry = environ; *entry; entry++)
		if (!strncmp(*entry, "CNI_", 4))
			append(&environment, *entry, strlen(*entry) + 1);
	append(call, head, snprintf(head, sizeof head, "felix-py-cni/1 %zu %zu\n", environment.length, input.length));
	append(call, environment.data, environment.length);
	append(call, input.data, input.length);
}

int main(void) {
	struct buffer call = {0};
	const char *command = getenv("CNI_COMMAND");
	if (!command || !*command) {
		fprintf(stderr,
		        "felix-py-cni: the CNI plugin of felix-py, versions 0.3.0 to 1.1.0. Container runtimes run it; it "
		        "passes their calls to the felix-py agent.\n");
		return 0;
	}
	find_socket();
	snprintf(timeout_message, sizeof timeout_message,
	         "{\"cniVersion\": \"1.0.0\", \"code\": %d, \"msg\": \"felix-py-cni: the agent at %s did not answer within "
	         "%d seconds\"}\n",
	         TRY_AGAIN, socket_path, TIMEOUT_SECONDS);
	signal(SIGALRM, on_alarm);
	signal(SIGPIPE, SIG_IGN);
	alarm(TIMEOUT_SECONDS);
	build_call(&call);
	if (!strcmp(command, "VERSION")) {
		puts("{\"cniVersion\": \"1.1.0\", \"supportedVersions\": [\"0.3.0\", \"0.3.1\", \"0.4.0\", \"1.0.0\", \"1.1.0\"]}");
		return 0;
	}
	int fd, code;
	do { /* the alarm ends it, if no agent stays */
		fd = strcmp(command, "ADD") ? connect_agent() : await_agent();
		code = fd < 0 ? -1 : ask(fd, &call);
	} while (code == HANDED_BACK);
	if (code >= 0)
		return code;
	if (!strcmp(command, "DEL") || !strcmp(command, "GC"))
		return ask_or_spool(&call);
	fail(fd < 0 ? "the felix-py agent is not running (nobody listens on %s)"
	            : "the felix-py agent on %s went away before it answered",
	     socket_path);
	return 1;
}
