/* Behaves as Tango's autodriver does towards who starts it, for tests on a VM that has it: setuid root, moves the
 * directory into autograde's home, runs make there under limits, tells the end, then shows the output. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void limit(int which, long most) {
    struct rlimit both = {most, most};
    if (most > 0) setrlimit(which, &both);
}

int main(int argc, char **argv) {
    long processes = 0, size = 0, timeout = 0;
    for (int option; (option = getopt(argc, argv, "u:f:t:o:")) != -1;) {
        if (option == 'u') processes = atol(optarg);
        if (option == 'f') size = atol(optarg);
        if (option == 't') timeout = atol(optarg);
    }
    struct passwd *user = getpwnam("autograde");
    if (getuid() == 0 || user == NULL) { printf("Autodriver: not like this\n"); return 1; }
    if (setuid(0) != 0) { printf("Autodriver: not setuid\n"); return 3; }
    char command[1000];
    snprintf(command, sizeof command, "mkdir -p %s && mv -f '%s' %s && chown -R autograde %s",
             user->pw_dir, argv[optind], user->pw_dir, user->pw_dir);
    if (system(command) != 0 || chdir(user->pw_dir) != 0) { printf("Autodriver: Error moving directory\n"); return 3; }
    sigset_t child_ended;
    sigemptyset(&child_ended);
    sigaddset(&child_ended, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child_ended, NULL);
    pid_t child = fork();
    if (child == 0) {
        sigprocmask(SIG_UNBLOCK, &child_ended, NULL);
        limit(RLIMIT_NPROC, processes);
        limit(RLIMIT_FSIZE, size);
        if (initgroups("autograde", user->pw_gid) || setgid(user->pw_gid) || setuid(user->pw_uid)) _exit(3);
        int out = open("output.log", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        dup2(out, 1), dup2(out, 2), close(out);
        if (chdir(argv[optind]) == 0) execlp("make", "make", NULL);
        _exit(3);
    }
    struct timespec most = {timeout, 0};
    int status, killed = timeout > 0 && sigtimedwait(&child_ended, NULL, &most) < 0;
    if (killed) kill(child, SIGKILL);
    waitpid(child, &status, 0);
    if (killed) printf("Autodriver: Job timed out after %ld seconds\n", timeout);
    else printf("Autodriver: Job exited with status %d\n", WEXITSTATUS(status));
    fflush(stdout);
    int shown = system("cat output.log; pkill -KILL -u autograde; find . /tmp /var/tmp -user autograde -delete 2>/dev/null");
    return shown < 0 ? 3 : killed ? 2 : 0;
}
