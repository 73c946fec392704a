/*
 * The grader: runs each test in a process group of its own, ends it after a time limit, and prints
 * the scores last. No code of the student's runs in this process: a crash, a hang or an early exit
 * is one failed test, and whatever a submission prints stands before the line that counts.
 */
#include "test_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TOKEN_BYTES 16

static const struct test {
    enum problem problem;
    int points;
    const char *says;
} tests[] = {
#define ENTRY(name, problem, points, says) {problem, points, says},
    TESTS(ENTRY)
};

static const char *const problem_names[PROBLEMS] = {"correctness", "robustness"};

static void new_token(char *token) {
    unsigned char random[TOKEN_BYTES];
    FILE *f = fopen("/dev/urandom", "rb");
    if (f == NULL || fread(random, 1, sizeof random, f) != sizeof random) {
        perror("/dev/urandom");
        exit(1);
    }
    fclose(f);
    for (int i = 0; i < TOKEN_BYTES; i++)
        sprintf(token + 2 * i, "%02x", random[i]);
}

static void run_test(int number, const char *token, int report) {
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    setpgid(0, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (report != 3) {
        dup2(report, 3);
        close(report);
    }
    execl("./tests", "./tests", text, token, (char *)NULL);
    printf("  the submission was not built\n");
    fflush(stdout);
    _exit(127);
}

/* What became of the test: NULL if it passed, else the reason why not. */
static const char *outcome(int number, double limit_s) {
    static char reason[80];
    char token[2 * TOKEN_BYTES + 1], got[2 * TOKEN_BYTES + 1] = "";
    int ends[2], status;
    new_token(token);
    if (pipe(ends) != 0)
        return "the grader has no pipe";
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    pid_t child = fork();
    if (child < 0)
        return "the grader cannot fork";
    if (child == 0)
        run_test(number, token, ends[1]);
    setpgid(child, child);
    close(ends[1]);

    struct timespec limit = {(time_t)limit_s, (long)((limit_s - (double)(time_t)limit_s) * 1e9)};
    sigset_t ended;
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    int hung = sigtimedwait(&ended, NULL, &limit) < 0 && errno == EAGAIN;
    kill(-child, SIGKILL);
    waitpid(child, &status, 0);
    while (sigtimedwait(&ended, NULL, &(struct timespec){0, 0}) > 0)
        ; /* the signal of a test that had to be killed must not end the wait for the next one */
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    ssize_t length = read(ends[0], got, sizeof got - 1);
    close(ends[0]);

    if (hung)
        return "it did not come to an end";
    if (WIFSIGNALED(status)) {
        snprintf(reason, sizeof reason, "it was ended by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
        return reason;
    }
    if (WEXITSTATUS(status) != 0 || length <= 0 || strcmp(got, token) != 0)
        return "wrong";
    return NULL;
}

int main(int argc, char **argv) {
    int scores[PROBLEMS] = {0};
    double limit_s = argc > 1 ? atof(argv[1]) : 20;
    sigset_t ended;
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ended, NULL);
    for (int i = 0; i < (int)(sizeof tests / sizeof tests[0]); i++) {
        printf("test %d: %s\n", i + 1, tests[i].says);
        fflush(stdout);
        const char *failure = outcome(i, limit_s);
        if (failure == NULL) {
            scores[tests[i].problem] += tests[i].points;
            printf("  passed, %d points\n", tests[i].points);
        } else
            printf("  FAILED: %s\n", failure);
        fflush(stdout);
    }
    /* The empty line ends whatever line a submission may have left open. */
    printf("\n{\"scores\": {");
    for (int i = 0; i < PROBLEMS; i++)
        printf("%s\"%s\": %d", i ? ", " : "", problem_names[i], scores[i]);
    printf("}}\n");
    return 0;
}
