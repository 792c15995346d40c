#include "core/team.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/float_control.h"
#include "core/status.h"
#include "curvk.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#endif

// GNU OpenMP is not instrumented, so ThreadSanitizer must be told what a region orders: its ranges run after the code
// before it and before the code behind it.
#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
#else
static inline void __tsan_acquire(void*) {}
static inline void __tsan_release(void*) {}
#endif

namespace curvk {
namespace {

char region_start, region_end;  // what ThreadSanitizer knows the two by

// ---- how many threads -----------------------------------------------------------------------------------------------

int64_t affinity_count() {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
#if defined(_SC_NPROCESSORS_ONLN)
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    if (n > 0) return n;
#endif
    return 1;
}

// CPUs that the cgroup's quota grants, rounded up; 0 where there is none.
int64_t quota_count() {
#if defined(__linux__)
    char path[4096] = "/sys/fs/cgroup/cpu.max", line[4096];
    if (FILE* f = std::fopen("/proc/self/cgroup", "r")) {  // cgroup v2 writes one line: 0::/the/path
        while (std::fgets(line, sizeof line, f))
            if (std::strncmp(line, "0::", 3) == 0) {
                line[std::strcspn(line, "\n")] = 0;
                char own[4096];
                const int n = std::snprintf(own, sizeof own, "/sys/fs/cgroup%s/cpu.max", line + 3);
                if (n > 0 && n < int(sizeof own) && access(own, R_OK) == 0) std::memcpy(path, own, size_t(n) + 1);
            }
        std::fclose(f);
    }
    double quota = 0, period = 0;
    if (FILE* f = std::fopen(path, "r")) {
        if (std::fscanf(f, "%lf %lf", &quota, &period) != 2) quota = 0;  // "max" means no limit
        std::fclose(f);
    } else {  // cgroup v1
        if (FILE* q = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
            if (std::fscanf(q, "%lf", &quota) != 1) quota = 0;
            std::fclose(q);
        }
        if (FILE* q = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
            if (std::fscanf(q, "%lf", &period) != 1) period = 0;
            std::fclose(q);
        }
    }
    if (quota > 0 && period > 0) return int64_t((quota + period - 1) / period);
#endif
    return 0;
}

struct Policy {
    int64_t threads;
    char reason[160];
};

// Reads a positive count from an environment variable; OMP_NUM_THREADS may be a list, whose first entry counts.
bool from_environment(const char* name, Policy& policy) {
    const char* text = std::getenv(name);
    if (!text || !*text) return false;
    char* end;
    const long n = std::strtol(text, &end, 10);
    if (n < 1 || (*end && *end != ',')) return false;
    policy.threads = n;
    std::snprintf(policy.reason, sizeof policy.reason, "%s=%ld", name, n);
    return true;
}

const Policy& default_policy() {
    static const Policy policy = [] {
        Policy p{};
        if (from_environment("CURVK_NUM_THREADS", p) || from_environment("OMP_NUM_THREADS", p)) return p;
        const int64_t cpus = affinity_count(), quota = quota_count();
        p.threads = quota > 0 && quota < cpus ? quota : cpus;
        if (quota > 0 && quota < cpus)
            std::snprintf(p.reason, sizeof p.reason, "cgroup quota of %lld CPUs", static_cast<long long>(quota));
        else
            std::snprintf(p.reason, sizeof p.reason, "CPUs this process may run on: %lld", static_cast<long long>(cpus));
        return p;
    }();
    return policy;
}

std::atomic<int64_t> process_threads{0};    // 0: the default policy
thread_local int64_t thread_limit = 0;      // 0: no limit
thread_local bool inside_range = false;     // a kernel that a range calls runs on that range's thread
std::atomic<bool> in_forked_child{false};   // GNU OpenMP's team does not survive fork: a region there hangs

#if defined(_OPENMP) && (defined(__unix__) || defined(__APPLE__))
__attribute__((constructor)) void watch_forks() {
    pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true); });
}
#endif

void run_range(RangeFunction f, void* context, int64_t begin, int64_t end) {
    const DefaultFloatControl control;
    const bool outer = inside_range;
    inside_range = true;
    f(context, begin, end);
    inside_range = outer;
}

}  // namespace

void run_ranges(int64_t n, int64_t grain, RangeFunction f, void* context) {
    if (n <= 0) return;
    int64_t threads = n / (grain > 0 ? grain : 1);
    if (threads > 1) {
        const int64_t allowed = curvk_num_threads();
        if (threads > allowed) threads = allowed;
    }
#ifdef _OPENMP
    if (threads > 1) {
        // Cuts fall on multiples of 64 where an index is one element, so that no cache line has two writers.
        const int64_t unit = grain >= 64 ? 64 : 1, blocks = (n + unit - 1) / unit;
        __tsan_release(&region_start);
#pragma omp parallel num_threads(static_cast<int>(threads))
        {
            __tsan_acquire(&region_start);
            const int64_t t = omp_get_thread_num(), team = omp_get_num_threads();
            const int64_t begin = blocks * t / team * unit, end = blocks * (t + 1) / team * unit;
            if (begin < end) run_range(f, context, begin, end < n ? end : n);
            __tsan_release(&region_end);
        }
        __tsan_acquire(&region_end);
        return;
    }
#endif
    run_range(f, context, 0, n);
}

}  // namespace curvk

int64_t curvk_num_threads() {
    using namespace curvk;
#ifndef _OPENMP
    return 1;
#else
    if (inside_range || in_forked_child.load(std::memory_order_relaxed) || omp_in_parallel()) return 1;
    const int64_t set = process_threads.load(std::memory_order_relaxed);
    const int64_t n = set > 0 ? set : default_policy().threads;
    return thread_limit > 0 ? thread_limit : n;
#endif
}

const char* curvk_threads_reason() {
    using namespace curvk;
#ifndef _OPENMP
    return "built without OpenMP";
#else
    if (in_forked_child.load()) return "a forked child runs on one thread";
    if (thread_limit > 0) return "curvk.threads() in this thread";
    if (process_threads.load() > 0) return "curvk.set_num_threads()";
    return default_policy().reason;
#endif
}

int32_t curvk_set_num_threads(int64_t n) {
    if (n < 0 || n > 65536) return curvk::fail(1, "curvk_set_num_threads: argument 'n': needs 0 to 65536");
    curvk::process_threads.store(n);
    return CURVK_OK;
}

int64_t curvk_set_thread_limit(int64_t n) {
    const int64_t old = curvk::thread_limit;
    curvk::thread_limit = n > 0 ? n : 0;
    return old;
}

int32_t curvk_openmp() {
#ifdef _OPENMP
    return _OPENMP;
#else
    return 0;
#endif
}

int32_t curvk_forked() { return curvk::in_forked_child.load(); }
