// Memory of the emulator: fences, what the processor notices, races in shared memory, copies under way.
//
// Kernels are compiled with -fsanitize=thread, whose calls (__tsan_read4 and so on) end here instead of in its library.
// Two threads' accesses to a byte of shared memory, one of them a write, are a race unless a barrier of the block or a
// meeting of both lanes stands between them, in whatever order they happened to run.
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include "state.h"

namespace simt {

// -- fences ------------------------------------------------------------------------------------------------------------

Fenced::Fenced(size_t bytes)
    : bytes(bytes), page(static_cast<size_t>(sysconf(_SC_PAGESIZE))), inner((bytes + page - 1) / page * page) {
    void* const place =
        mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    base = static_cast<unsigned char*>(place);
    if (place == MAP_FAILED || (inner && mprotect(base + page, inner, PROT_READ | PROT_WRITE))) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        abort();
    }
}

Fenced::~Fenced() { munmap(base, inner + 2 * page); }

bool Fenced::near(const void* address) const {
    const auto* const at = static_cast<const unsigned char*>(address);
    return at >= base && at < base + inner + 2 * page;
}

std::string text(const char* format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    return line;
}

std::string located(const void* instruction) {
    Dl_info library;
    if (!instruction || !dladdr(instruction, &library)) return "";
    return text(" [%s+0x%tx]", library.dli_fname,
                static_cast<const char*>(instruction) - static_cast<const char*>(library.dli_fbase));
}

// -- a kernel's mistakes that the processor notices --------------------------------------------------------------------

namespace {

constexpr int watched[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
constexpr int signals = sizeof watched / sizeof *watched;
alignas(16) unsigned char signal_stack[64 * 1024];

void on_signal(int number, siginfo_t* info, void* context) {
    std::string what = "made an operation without a meaning (outside a local array, a pointer not aligned to its type)";
    if (number == SIGFPE) what = "divided an integer by zero";
    if (number == SIGSEGV || number == SIGBUS) {
        const auto* const address = static_cast<const unsigned char*>(info->si_addr);
        what = "touched an address that belongs to no buffer";
        if (shared && shared->near(address))
            what = text("left the shared memory: byte %td of %zu", address - shared->begin(), shared->bytes);
        else if (running && running->stack && running->stack->near(address))
            what = "used more than its stack";
    }
    const void* instruction = nullptr;
#if defined(__x86_64__)
    instruction = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
    instruction = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.pc);
#else
    (void)context;
#endif
    end_launch(name(*running) + " " + what + located(instruction));
}

}  // namespace

struct Watch::Before {
    struct sigaction actions[signals];
    stack_t stack;
};

Watch::Watch() : before(std::make_unique<Before>()) {
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &before->stack);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int n = 0; n < signals; n++) sigaction(watched[n], &action, &before->actions[n]);
}

Watch::~Watch() {
    for (int n = 0; n < signals; n++) sigaction(watched[n], &before->actions[n], nullptr);
    sigaltstack(&before->stack, nullptr);
}

// -- races -------------------------------------------------------------------------------------------------------------

namespace {

struct Access {
    uint64_t time = 0;
    const void* instruction = nullptr;
    int thread = -1;
};

struct Byte {
    Access written, read, read_before;  // the latest, and of reads the latest of another thread
    bool flying = false;                // a copy into it is under way
};

uint64_t now = 1, block_met;  // meetings, counted; the latest of the whole block
uint64_t pair_met[32][32][32];  // by warp and two of its lanes
std::vector<Byte> bytes;

bool ordered(const Access& earlier, int thread) {
    if (earlier.thread == thread || earlier.time < block_met) return true;
    const int warp = thread / 32;
    return earlier.thread / 32 == warp && earlier.time < pair_met[warp][earlier.thread % 32][thread % 32];
}

[[noreturn]] void race(const char* what, const char* did, size_t at, const Access& earlier, const void* instruction) {
    const Thread& other = *threads[static_cast<size_t>(earlier.thread)];
    end_launch(name(*running) + text(" %s byte %zu of shared memory", what, at) + located(instruction) + " that " +
               name(other) + text(" %s", did) + located(earlier.instruction) + ", and nothing stands between them");
}

void check(size_t at, size_t size, bool write, int thread, const void* instruction) {
    for (size_t n = at; n < at + size; n++) {
        Byte& byte = bytes[n];
        if (byte.flying && thread >= 0)
            race(write ? "writes" : "reads", "copies there without having waited", n, byte.written, instruction);
        if (!ordered(byte.written, thread))
            race(write ? "writes" : "reads", "wrote", n, byte.written, instruction);
        if (write) {
            for (const Access& read : {byte.read, byte.read_before})
                if (!ordered(read, thread)) race("writes", "read", n, read, instruction);
            byte.written = {now, instruction, thread};
        } else {
            if (byte.read.thread != thread) byte.read_before = byte.read;
            byte.read = {now, instruction, thread};
        }
    }
}

void accessed(const void* address, size_t size, bool write, const void* instruction) {
    if (!running || !shared) return;
    const auto* const at = static_cast<const unsigned char*>(address);
    if (at >= shared->begin() && at + size <= shared->end())
        check(static_cast<size_t>(at - shared->begin()), size, write, running->number, instruction);
    else if (shared->near(at))
        end_launch(name(*running) + text(" left the shared memory: byte %td of %zu", at - shared->begin(),
                                         shared->bytes) + located(instruction));
}

}  // namespace

void begin_block_of_accesses() {
    if (bytes.size() < shared->bytes) bytes.resize(shared->bytes);
    all_met();  // what the block before did is no race, and all its copies have come
}

void forget_accesses() { bytes.clear(); }

void all_met() { block_met = ++now; }

void lanes_met(int first, unsigned mask) {
    auto& met = pair_met[first / 32];
    ++now;
    for (int one = 0; one < 32; one++)
        if (mask >> one & 1)
            for (int other = 0; other < 32; other++)
                if (mask >> other & 1) met[one][other] = now;
}

// -- instructions that read or write shared memory themselves ----------------------------------------------------------

namespace {

size_t place_in_shared(const void* pointer, const char* what, Site site) {
    const auto* const at = static_cast<const unsigned char*>(pointer);
    if (at < shared->begin() || at + 16 > shared->end())
        fail(text("%s at byte %td of %zu of shared memory", what, at - shared->begin(), shared->bytes).c_str(), site);
    if (reinterpret_cast<uintptr_t>(at) % 16) fail(text("%s: not aligned to 16 bytes", what).c_str(), site);
    return static_cast<size_t>(at - shared->begin());
}

}  // namespace

void ldmatrix(uint32_t (&r)[4], const void* row, bool transposed, Site site) {
    struct Given {
        const unsigned char* row;
        bool transposed;
    };
    const size_t at = place_in_shared(row, "ldmatrix", site);
    const void* const instruction = __builtin_return_address(0);
    check(at, 16, false, running->number, instruction);
    check(at, 16, false, running->number ^ 1, instruction);  // other lanes are given what stands there
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
    const size_t at = place_in_shared(to, "cp_async_16", site);
    if (valid && reinterpret_cast<uintptr_t>(from) % 16) fail("cp_async_16: source not aligned to 16 bytes", site);
    check(at, 16, true, running->number, __builtin_return_address(0));
    for (size_t n = at; n < at + 16; n++) bytes[n].flying = true;
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
            const auto at = static_cast<size_t>(static_cast<unsigned char*>(copy.to) - shared->begin());
            for (size_t n = at; n < at + 16; n++) {
                bytes[n].flying = false;
                bytes[n].written.time = now;
            }
            if (copy.valid) memcpy(copy.to, copy.from, 16);
            else memset(copy.to, 0, 16);
        }
        running->closed.pop_front();
    }
}

void never_waited_for(Thread& thread) {
    thread.closed.push_back(std::move(thread.open));
    thread.open.clear();
    for (const auto& group : thread.closed)
        if (!group.empty()) fail("returned with a copy (cp_async_16) never waited for", group.front().site);
    thread.closed.clear();
}

}  // namespace simt

// -- what -fsanitize=thread calls --------------------------------------------------------------------------------------

#define ACCESS(name, size, write)                                                    \
    void __tsan_##name(void* address) {                                              \
        simt::accessed(address, size, write, __builtin_return_address(0));           \
    }
#define ACCESSES(size)                 \
    ACCESS(read##size, size, false)    \
    ACCESS(write##size, size, true)    \
    ACCESS(unaligned_read##size, size, false) \
    ACCESS(unaligned_write##size, size, true)

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* address, size_t size) {
    simt::accessed(address, size, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t size) {
    simt::accessed(address, size, true, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, size_t size) {
    simt::accessed(from, size, false, __builtin_return_address(0));
    simt::accessed(to, size, true, __builtin_return_address(0));
    return memcpy(to, from, size);
}
void* __tsan_memmove(void* to, const void* from, size_t size) {
    simt::accessed(from, size, false, __builtin_return_address(0));
    simt::accessed(to, size, true, __builtin_return_address(0));
    return memmove(to, from, size);
}
void* __tsan_memset(void* to, int value, size_t size) {
    simt::accessed(to, size, true, __builtin_return_address(0));
    return memset(to, value, size);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

// Memory with its end at a page that nothing may touch: what is read or written behind it ends a launch.
void* simt_fenced(uint64_t bytes) { return new simt::Fenced(bytes); }
void* simt_fenced_begin(void* fenced) { return static_cast<simt::Fenced*>(fenced)->begin(); }
void simt_fenced_end(void* fenced) { delete static_cast<simt::Fenced*>(fenced); }
}
