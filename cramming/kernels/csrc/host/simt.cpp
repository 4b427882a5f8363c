// The scheduler of host/simt.h: fibres, their meetings, shared memory between pages that nothing may touch.
#include <cstdio>

#include "state.h"

namespace simt {

std::vector<std::unique_ptr<Thread>> threads;
Thread* running = nullptr;
std::unique_ptr<Fenced> shared;

namespace {

constexpr size_t stack_bytes = 128 * 1024;
constexpr size_t most_shared = 227 * 1024;

// -- the state of a launch ---------------------------------------------------------------------------------------------

struct Warp {
    unsigned char given[32 * exchanged_bytes], found[32 * exchanged_bytes];
};

std::vector<Warp> warps;
std::vector<Thread*> ready;
int alive, at_barrier;
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

}  // namespace

std::string name(const Thread& thread) {
    const dim3 &b = thread.place.block, &t = thread.place.thread;
    return text("block (%u, %u, %u) thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
}

void end_launch(const std::string& why) {
    failure = why;
    siglongjmp(main_jump, 1);
}

namespace {

// -- fibres ------------------------------------------------------------------------------------------------------------

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

// All have come to the barrier: they may go on.
void release() {
    at_barrier = 0;
    all_met();
    for (auto& thread : threads)
        if (thread->state == State::at_barrier) thread->state = State::ready, ready.push_back(thread.get());
}

void live() {
    for (;;) {  // a fibre is kept for the blocks and launches that follow
        (*body)();
        Thread& self = *running;
        never_waited_for(self);
        self.state = State::done;
        alive--;
        if (alive && at_barrier == alive) release();  // those that returned are not waited for
        next();
    }
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

// -- blocks ------------------------------------------------------------------------------------------------------------

void run_block(dim3 at, dim3 grid, dim3 block) {
    memset(shared->begin(), 0xff, shared->bytes);  // NaN in each of the types
    memset(shared->low(), 0xa5, static_cast<size_t>(shared->begin() - shared->low()));
    begin_block_of_accesses();
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
    if (++at_barrier == alive) release();
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
        const bool same = other.kind == kind && other.mask == mask && other.site.line == site.line;
        if (other.state == State::at_meeting && same) continue;
        all = false;
        if (other.state == State::at_meeting && (other.mask >> self.lane & 1))  // it waits for this one in vain
            fail((std::string("is at ") + name(kind) + text(" with the mask 0x%08x while ", mask) + waiting(other) +
                  text(" with 0x%08x", other.mask)).c_str(), site);
    }
    self.state = State::at_meeting;
    if (all) {
        exchange(warp.given, warp.found, mask);
        lanes_met(first, mask);
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
            forget_accesses();
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
}
