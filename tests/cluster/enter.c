/* enter PID COMMAND…: runs a command in the mount, network and process namespaces of PID, in the same folder.

   It is not nsenter(1) because that hands no signal on: a test that interrupts or kills what it started would leave the
   command running. Here the command gets the signal, and it dies with this process if that is killed. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const int handed_on[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

static int fail(const char *what) {
    fprintf(stderr, "error: could not %s: %s\n", what, strerror(errno));
    return 125;
}

int main(int count, char **arguments) {
    char folder[PATH_MAX];
    if (count < 3) {
        fprintf(stderr, "usage: enter PID COMMAND…\n");
        return 125;
    }
    if (!getcwd(folder, sizeof folder))
        return fail("read the working folder");
    int process = syscall(SYS_pidfd_open, atoi(arguments[1]), 0);
    if (process < 0)
        return fail("find the cluster's first process");
    if (setns(process, CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID) < 0)
        return fail("enter the cluster's namespaces");
    if (chdir(folder) < 0)
        return fail("enter the working folder inside the cluster");

    sigset_t waited, before;
    sigemptyset(&waited);
    sigaddset(&waited, SIGCHLD);
    for (size_t i = 0; i < sizeof handed_on / sizeof *handed_on; i++)
        sigaddset(&waited, handed_on[i]);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_BLOCK, &waited, &before);

    pid_t child = fork();
    if (child < 0)
        return fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        sigprocmask(SIG_SETMASK, &before, NULL);
        execvp(arguments[2], arguments + 2);
        int missing = errno == ENOENT;
        fprintf(stderr, "error: could not run `%s` inside the cluster: %s\n", arguments[2], strerror(errno));
        _exit(missing ? 127 : 126);
    }
    for (;;) {
        siginfo_t received;
        int number = sigwaitinfo(&waited, &received), status;
        if (number < 0)
            continue;
        if (number != SIGCHLD) {
            /* What the terminal sends went to the whole process group, so the command has it already. */
            if (received.si_code <= 0)
                kill(child, number);
            continue;
        }
        if (waitpid(child, &status, WNOHANG) != child)
            continue;
        if (WIFEXITED(status))
            return WEXITSTATUS(status);
        /* End the same way, so that a caller reads the signal, but leave no second core file. */
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        signal(WTERMSIG(status), SIG_DFL);
        sigprocmask(SIG_UNBLOCK, &waited, NULL);
        raise(WTERMSIG(status));
        return 128 + WTERMSIG(status);
    }
}
