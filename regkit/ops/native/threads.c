/* The threads that share the work of a kernel.
 *
 *     caller   [part 0] [part 3]      [part 5]                      sum of all parts, in their order
 *     worker 1    [part 1]  [part 4] [part 6]  sleeps
 *     worker 2      [part 2]      [part 7]     sleeps
 *
 * Parts are handed out here and not in Python, whose lock would let one thread at a time ask for one: with eight
 * threads that takes longer than the parts of a small kernel do. Workers are started when they are first needed and
 * sleep between the jobs; they never spin, as other programs share the processor. Several Python threads may call
 * at once: each works on its own job, and the workers on those that have parts left. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "call.h"

#if defined(_WIN32)
#include <windows.h>
static SRWLOCK lock = SRWLOCK_INIT;
static CONDITION_VARIABLE more_work = CONDITION_VARIABLE_INIT, work_done = CONDITION_VARIABLE_INIT;
static void locked(void) { AcquireSRWLockExclusive(&lock); }
static void unlocked(void) { ReleaseSRWLockExclusive(&lock); }
static void wait_for(CONDITION_VARIABLE *condition) { SleepConditionVariableSRW(condition, &lock, INFINITE, 0); }
static void wake(CONDITION_VARIABLE *condition) { WakeAllConditionVariable(condition); }
#else
#include <pthread.h>
#include <signal.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more_work = PTHREAD_COND_INITIALIZER, work_done = PTHREAD_COND_INITIALIZER;
static void locked(void) { pthread_mutex_lock(&lock); }
static void unlocked(void) { pthread_mutex_unlock(&lock); }
static void wait_for(pthread_cond_t *condition) { pthread_cond_wait(condition, &lock); }
static void wake(pthread_cond_t *condition) { pthread_cond_broadcast(condition); }
#endif

typedef struct Job {
    Call call;
    const Slot *arguments;
    int64_t count, parts;
    double *sums;              /* of each part */
    atomic_int_fast64_t next;  /* the part that is handed out next */
    int helpers, most_helpers; /* workers that are at it, and that may be */
    struct Job *following;
} Job;

/* All under the lock. */
static Job *jobs;
static int workers;

static void do_parts(Job *job) {
    for (;;) {
        const int64_t k = atomic_fetch_add(&job->next, 1);
        if (k >= job->parts) return;
        const int64_t first = job->count * k / job->parts, last = job->count * (k + 1) / job->parts;
        job->sums[k] = job->call(first, last, job->arguments);
    }
}

static Job *job_with_parts(void) {
    for (Job *job = jobs; job != NULL; job = job->following)
        if (job->helpers < job->most_helpers && atomic_load(&job->next) < job->parts) return job;
    return NULL;
}

static void help(void) {
    locked();
    for (;;) {
        Job *job = job_with_parts();
        if (job == NULL) {
            wait_for(&more_work);
            continue;
        }
        job->helpers++;
        unlocked();
        do_parts(job);
        locked();
        if (--job->helpers == 0) wake(&work_done);
    }
}

#if defined(_WIN32)
static DWORD WINAPI worker(void *nothing) {
    (void)nothing;
    help();
    return 0;
}

static int start_worker(void) {
    const HANDLE thread = CreateThread(NULL, 0, worker, NULL, 0, NULL);
    if (thread != NULL) CloseHandle(thread);
    return thread != NULL;
}
#else
static void *worker(void *nothing) {
    help();
    return nothing;
}

/* A forked process has none of its parent's threads. */
static void forget_workers(void) {
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&more_work, NULL);
    pthread_cond_init(&work_done, NULL);
    jobs = NULL;
    workers = 0;
}

static int start_worker(void) {
    static int told;
    if (!told) told = pthread_atfork(NULL, NULL, forget_workers) == 0;
    pthread_t thread;
    sigset_t every, before;
    sigfillset(&every); /* signals are for the main thread, which Python's handlers run in */
    pthread_sigmask(SIG_SETMASK, &every, &before);
    const int started = pthread_create(&thread, NULL, worker, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started) pthread_detach(thread);
    return started;
}
#endif

int run_in_parts(Call call, int64_t count, int64_t parts, int threads, const Slot *arguments, double *sum) {
    double *sums = malloc((size_t)parts * sizeof(double));
    if (sums == NULL) return 1;
    const int helpers = threads < parts ? threads - 1 : (int)parts - 1;
    Job job = {.call = call, .arguments = arguments, .count = count, .parts = parts, .sums = sums,
               .most_helpers = helpers};
    atomic_init(&job.next, 0);
    if (helpers > 0) {
        locked();
        while (workers < helpers && start_worker()) workers++; /* as many as there can be */
        job.following = jobs;
        jobs = &job;
        wake(&more_work);
        unlocked();
    }
    do_parts(&job);
    if (helpers > 0) {
        locked();
        Job **at = &jobs;
        while (*at != &job) at = &(*at)->following;
        *at = job.following; /* nobody comes any more, and those who are here finish */
        while (job.helpers > 0) wait_for(&work_done);
        unlocked();
    }
    int failed = 0;
    *sum = 0;
    for (int64_t k = 0; k < parts; k++) {
        failed |= sums[k] == -INFINITY;
        *sum += sums[k];
    }
    free(sums);
    return failed;
}
