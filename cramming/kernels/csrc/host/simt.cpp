// The scheduler of host/simt.h: fibres, their meetings, shared memory between pages that nothing may touch.
#include "../device.h"

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <dlfcn.h>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

namespace simt {
namespace {

constexpr size_t stack_bytes = 128 * 1024;
constexpr size_t most_shared = 227 * 1024;

// -- memory whose end is followed, and whose beginning preceded, by a page that nothing may touch ----------------------

class Fenced {
  public:
    explicit Fenced(size_t bytes) : bytes(bytes), page(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
        inner = (bytes + page - 1) / page * page;
        base = static_cast<unsigned char*>(
            mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (base == MAP_FAILED || mprotect(base + page, inner, PROT_READ | PROT_WRITE)) {
            fprintf(stderr, "no memory for %zu bytes\n", bytes);
            abort();
        }
    }
    ~Fenced() { munmap(base, inner + 2 * page); }
    Fenced(const Fenced&) = delete;
    Fenced& operator=(const Fenced&) = delete;

    unsigned char* begin() const { return base + page + inner - bytes; }
    unsigned char* end() const { return base + page + inner; }
    unsigned char* low() const { return base + page; }
    bool near(const void* address) const {
        return address >= static_cast<void*>(base) && address < static_cast<void*>(base + inner + 2 * page);
    }

    const size_t bytes;

  private:
    const size_t page;
    size_t inner;
    unsigned char* base;
};

// -- the state of one launch -------------------------------------------------------------------------------------------

enum class State { ready, at_barrier, at_meeting, done };

struct Copy {
    void* to;
    const void* from;
    bool valid;
    Site site;
};

struct Thread {
    Place place;
    int number, lane;
    State state;
    bool begun = false;
    jmp_buf jump;
    ucontext_t start;
    std::unique_ptr<Fenced> stack;
    Site site;  // where it waits
    Meeting kind;
    unsigned mask;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> closed;
};

struct Warp {
    unsigned char given[32 * exchanged_bytes], found[32 * exchanged_bytes];
};

std::vector<std::unique_ptr<Thread>> threads;
std::vector<Warp> warps;
std::vector<Thread*> ready;
Thread* running = nullptr;
int alive, at_barrier;
std::unique_ptr<Fenced> shared;
const std::function<void()>* body;
sigjmp_buf main_jump;
std::string failure;
uint64_t seed = 1, drawn;
size_t shared_most = most_shared;

uint64_t draw(uint64_t below) {  // xorshift64*
    drawn ^= drawn >> 12, drawn ^= drawn << 25, drawn ^= drawn >> 27;
    return (drawn * 0x2545F4914F6CDD1DULL >> 32) * below >> 32;
}

const char* base_name(const char* path) {
    const char* const last = strrchr(path, '/');
    return last ? last + 1 : path;
}

std::string text(const char* format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    return line;
}

std::string name(const Thread& thread) {
    const dim3 &b = thread.place.block, &t = thread.place.thread;
    return text("block (%u, %u, %u) thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
}

const char* name(Meeting kind) {
    switch (kind) {
        case Meeting::barrier: return "__syncthreads";
        case Meeting::vote: return "__syncwarp or a vote";
        case Meeting::shuffle: return "a shuffle";
        case Meeting::mma: return "mma_16816";
        case Meeting::ldmatrix: return "ldmatrix";
    }
    return "";
}

std::string waiting(const Thread& thread) {
    if (thread.state == State::done) return name(thread) + " has returned";
    const Meeting kind = thread.state == State::at_barrier ? Meeting::barrier : thread.kind;
    return name(thread) + " waits at " + name(kind) +
           text(" (%s:%d)", base_name(thread.site.file), thread.site.line);
}

[[noreturn]] void end_launch(const std::string& why) {
    failure = why;
    siglongjmp(main_jump, 1);
}

// -- fibres ------------------------------------------------------------------------------------------------------------

void live() {
    for (;;) {  // a fibre is kept for the blocks and launches that follow
        (*body)();
        Thread& self = *running;
        if (!self.open.empty() || !self.closed.empty())
            for (self.closed.push_back(self.open); !self.closed.empty(); self.closed.pop_front())
                if (!self.closed.front().empty())
                    fail("returned with a copy (cp_async_16) never waited for", self.closed.front().front().site);
        self.open.clear();
        self.state = State::done;
        alive--;
        if (alive && at_barrier == alive) {  // those that returned are not waited for
            at_barrier = 0;
            for (auto& thread : threads)
                if (thread->state == State::at_barrier) thread->state = State::ready, ready.push_back(thread.get());
        }
        void next();
        next();
    }
}

// Give the processor to another fibre until this one is ready and drawn again.
void next() {
    Thread* const self = running;
    if (_setjmp(self->jump)) return;
    if (ready.empty()) siglongjmp(main_jump, 1);  // all are done, or nobody can go on
    const size_t place = draw(ready.size());
    running = ready[place];
    ready[place] = ready.back();
    ready.pop_back();
    if (running->begun) _longjmp(running->jump, 1);
    running->begun = true;
    setcontext(&running->start);
}

void begin(Thread& thread) {
    if (!thread.stack) thread.stack = std::make_unique<Fenced>(stack_bytes);
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack->low();
    thread.start.uc_stack.ss_size = stack_bytes;
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, live, 0);
    thread.begun = false;
}

// -- a kernel's mistakes that the processor notices --------------------------------------------------------------------

alignas(16) unsigned char signal_stack[64 * 1024];

void on_signal(int number, siginfo_t* info, void* context) {
    const char* what = "made an operation without a meaning (out of a local array, a pointer not aligned to its type)";
    std::string where;
    if (number == SIGFPE) what = "divided an integer by zero";
    if (number == SIGSEGV || number == SIGBUS) {
        const unsigned char* const address = static_cast<unsigned char*>(info->si_addr);
        what = "touched an address that belongs to no buffer";
        if (shared && shared->near(address)) {
            what = "left the shared memory";
            where = text(": byte %td of %zu", address - shared->begin(), shared->bytes);
        } else if (running && running->stack->near(address)) {
            what = "used more than its stack";
        }
    }
    const void* instruction = nullptr;
#if defined(__x86_64__)
    instruction = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
    instruction = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.pc);
#endif
    (void)context;
    Dl_info library;
    if (instruction && dladdr(instruction, &library))
        where += text(" [%s+0x%tx]", library.dli_fname,
                      static_cast<const char*>(instruction) - static_cast<const char*>(library.dli_fbase));
    end_launch(name(*running) + " " + what + where);
}

constexpr int watched[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};

struct Watch {
    struct sigaction before[5];
    stack_t stack_before;

    Watch() {
        stack_t stack = {};
        stack.ss_sp = signal_stack;
        stack.ss_size = sizeof signal_stack;
        sigaltstack(&stack, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int n = 0; n < 5; n++) sigaction(watched[n], &action, &before[n]);
    }
    ~Watch() {
        for (int n = 0; n < 5; n++) sigaction(watched[n], &before[n], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};

// -- blocks ------------------------------------------------------------------------------------------------------------

void run_block(dim3 at, dim3 grid, dim3 block) {
    memset(shared->begin(), 0xff, shared->bytes);  // NaN in each of the types
    memset(shared->low(), 0xa5, static_cast<size_t>(shared->begin() - shared->low()));
    ready.clear();
    at_barrier = 0;
    alive = static_cast<int>(threads.size());
    for (auto& thread : threads) {
        const unsigned n = static_cast<unsigned>(thread->number);
        thread->place = {{n % block.x, n / block.x % block.y, n / (block.x * block.y)}, at, block, grid};
        thread->state = State::ready;
        ready.push_back(thread.get());
    }
    if (!sigsetjmp(main_jump, 1)) {
        static Thread outside;  // what waits for the block's end; never chosen
        running = &outside;
        next();
    }
    running = nullptr;
    for (const unsigned char* before = shared->low(); failure.empty() && before < shared->begin(); before++)
        if (*before != 0xa5) failure = "something was written in front of the shared memory";
    if (failure.empty() && alive) {
        int said = 0;
        for (auto& thread : threads)
            if (thread->state != State::ready && said < 4) {
                bool other = true;  // one thread for each place
                for (auto& before : threads) {
                    if (before == thread) break;
                    other &= before->state != thread->state || before->site.line != thread->site.line;
                }
                if (other) failure += (said++ ? "; " : "nobody can go on: ") + waiting(*thread);
            }
    }
}

}  // namespace

const Place& current() { return running->place; }
void* shared_memory() { return shared->begin(); }
int lane() { return running->lane; }
int shared_limit() { return static_cast<int>(shared_most); }

void fail(const char* what, Site site) {
    end_launch(name(*running) + " " + what + text(" (%s:%d)", base_name(site.file), site.line));
}

void block_barrier(Site site) {
    Thread& self = *running;
    self.site = site;
    if (at_barrier)
        for (auto& other : threads)
            if (other->state == State::at_barrier && other->site.line != site.line)
                fail(("reached a barrier while " + waiting(*other)).c_str(), site);
    self.state = State::at_barrier;
    if (++at_barrier == alive) {
        at_barrier = 0;
        for (auto& thread : threads)
            if (thread->state == State::at_barrier) thread->state = State::ready, ready.push_back(thread.get());
    }
    next();
}

void meet(Meeting kind, unsigned mask, const void* given, size_t given_bytes, void* found, size_t found_bytes,
          Exchange exchange, Site site) {
    Thread& self = *running;
    const int first = self.number - self.lane;
    Warp& warp = warps[static_cast<size_t>(self.number / 32)];
    if (!(mask >> self.lane & 1)) fail(text("is not in the mask 0x%08x it gives", mask).c_str(), site);
    memcpy(warp.given + self.lane * exchanged_bytes, given, given_bytes);
    self.kind = kind, self.mask = mask, self.site = site;
    bool all = true;
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1) || lane == self.lane) continue;
        const size_t number = static_cast<size_t>(first + lane);
        if (number >= threads.size()) fail(text("names lane %d of a warp that has fewer", lane).c_str(), site);
        const Thread& other = *threads[number];
        if (other.state == State::done) fail(("meets lanes of which " + waiting(other)).c_str(), site);
        if (other.state != State::at_meeting) {
            all = false;
        } else if (other.kind != kind || other.mask != mask || other.site.line != site.line) {
            fail((std::string("is at ") + name(kind) + text(" with the mask 0x%08x while ", mask) + waiting(other) +
                  text(" with 0x%08x", other.mask)).c_str(), site);
        }
    }
    self.state = State::at_meeting;
    if (all) {
        exchange(warp.given, warp.found, mask);
        for (int lane = 0; lane < 32; lane++)
            if (mask >> lane & 1) {
                Thread& other = *threads[static_cast<size_t>(first + lane)];
                other.state = State::ready;
                ready.push_back(&other);
            }
    }
    next();
    memcpy(found, warp.found + self.lane * exchanged_bytes, found_bytes);
}

unsigned ballot(unsigned mask, bool vote, Site site) {
    unsigned found;
    const unsigned char given = vote;
    meet(Meeting::vote, mask, &given, 1, &found, sizeof found,
         [](const unsigned char* given, unsigned char* found, unsigned mask) {
             unsigned votes = 0;
             for (int lane = 0; lane < 32; lane++)
                 if (mask >> lane & 1 && given[lane * exchanged_bytes]) votes |= 1u << lane;
             for (int lane = 0; lane < 32; lane++) memcpy(found + lane * exchanged_bytes, &votes, sizeof votes);
         },
         site);
    return found;
}

static void check_shared(const void* pointer, const char* what, Site site) {
    const auto* const at = static_cast<const unsigned char*>(pointer);
    if (at < shared->begin() || at + 16 > shared->end())
        fail(text("%s at byte %td of %zu in shared memory", what, at - shared->begin(), shared->bytes).c_str(), site);
    if (reinterpret_cast<uintptr_t>(at) % 16) fail(text("%s: not aligned to 16 bytes", what).c_str(), site);
}

void ldmatrix(uint32_t (&r)[4], const void* row, bool transposed, Site site) {
    struct Given {
        const unsigned char* row;
        bool transposed;
    };
    check_shared(row, "ldmatrix", site);
    const Given given = {static_cast<const unsigned char*>(row), transposed};
    meet(Meeting::ldmatrix, ~0u, &given, sizeof given, r, sizeof r,
         [](const unsigned char* given, unsigned char* found, unsigned) {
             for (int lane = 0; lane < 32; lane++)
                 for (int matrix = 0; matrix < 4; matrix++)
                     for (int half = 0; half < 2; half++) {
                         int line = lane / 4, column = lane % 4 * 2 + half;
                         Given of;
                         memcpy(&of, given, sizeof of);
                         if (of.transposed) line = lane % 4 * 2 + half, column = lane / 4;
                         memcpy(&of, given + (matrix * 8 + line) * exchanged_bytes, sizeof of);
                         memcpy(found + lane * exchanged_bytes + matrix * 4 + half * 2, of.row + 2 * column, 2);
                     }
         },
         site);
}

void copy_later(void* to, const void* from, bool valid, Site site) {
    check_shared(to, "cp_async_16", site);
    if (valid && reinterpret_cast<uintptr_t>(from) % 16) fail("cp_async_16: source not aligned to 16 bytes", site);
    memset(to, 0xff, 16);  // undefined until it is waited for
    running->open.push_back({to, from, valid, site});
}

void close_copies() {
    running->closed.push_back(std::move(running->open));
    running->open.clear();
}

void wait_for_copies(int groups_left) {
    while (running->closed.size() > static_cast<size_t>(groups_left)) {
        for (const Copy& copy : running->closed.front()) {
            if (copy.valid) memcpy(copy.to, copy.from, 16);
            else memset(copy.to, 0, 16);
        }
        running->closed.pop_front();
    }
}

const char* launch_block_by_block(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z, count = uint64_t(block.x) * block.y * block.z;
    failure.clear();
    if (!blocks || grid.x > INT_MAX || grid.y > 65535 || grid.z > 65535)
        failure = text("no grid can be (%u, %u, %u)", grid.x, grid.y, grid.z);
    else if (!count || count > 1024 || block.z > 64)
        failure = text("no block can be (%u, %u, %u)", block.x, block.y, block.z);
    else if (shared_bytes > shared_most)
        failure = text("%zu bytes of shared memory wanted, %zu are there", shared_bytes, shared_most);
    if (!failure.empty()) return failure.c_str();
    drawn = seed * 0x9E3779B97F4A7C15ULL | 1;
    body = &kernel;
    shared = std::make_unique<Fenced>(shared_bytes);
    threads.resize(count);
    warps.resize((count + 31) / 32);
    for (size_t n = 0; n < count; n++)
        if (!threads[n]) {
            threads[n] = std::make_unique<Thread>();
            threads[n]->number = static_cast<int>(n), threads[n]->lane = static_cast<int>(n % 32);
            begin(*threads[n]);
        }
    std::vector<uint64_t> order(blocks);
    for (uint64_t n = 0; n < blocks; n++) {
        const uint64_t place = draw(n + 1);
        order[n] = order[place];
        order[place] = n;
    }
    const Watch watch;
    for (const uint64_t n : order) {
        const dim3 at(static_cast<unsigned>(n % grid.x), static_cast<unsigned>(n / grid.x % grid.y),
                      static_cast<unsigned>(n / grid.x / grid.y));
        run_block(at, grid, block);
        if (!failure.empty()) {
            threads.clear();  // their stacks stand in the middle of a kernel
            return failure.c_str();
        }
    }
    return nullptr;
}

}  // namespace simt

// -- what tests set ----------------------------------------------------------------------------------------------------

extern "C" {
void simt_seed(uint64_t seed) { simt::seed = seed; }
void simt_shared_limit(uint64_t bytes) { simt::shared_most = bytes; }
// Memory with its end at a page that nothing may touch: what is read or written behind it ends a launch.
void* simt_fenced(uint64_t bytes) { return new simt::Fenced(bytes); }
void* simt_fenced_begin(void* fenced) { return static_cast<simt::Fenced*>(fenced)->begin(); }
void simt_fenced_end(void* fenced) { delete static_cast<simt::Fenced*>(fenced); }
}
