// What the emulator's own sources share: fibres, shared memory, and how a launch ends early.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <ucontext.h>
#include <vector>

#include "../device.h"

namespace simt {

// Memory whose end is followed, and whose beginning preceded, by a page that nothing may touch.
class Fenced {
  public:
    explicit Fenced(size_t bytes);
    ~Fenced();
    Fenced(const Fenced&) = delete;
    Fenced& operator=(const Fenced&) = delete;

    unsigned char* begin() const { return base + page + inner - bytes; }
    unsigned char* end() const { return base + page + inner; }
    unsigned char* low() const { return base + page; }  // up to a page below the beginning
    bool near(const void* address) const;

    const size_t bytes;

  private:
    const size_t page, inner;
    unsigned char* base;
};

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

extern std::vector<std::unique_ptr<Thread>> threads;
extern Thread* running;
extern std::unique_ptr<Fenced> shared;

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string name(const Thread& thread);
std::string located(const void* instruction);  // [library+0x123], which tests turn into a line
[[noreturn]] void end_launch(const std::string& why);

// Signals of a processor that a kernel's mistakes raise end the launch as long as this lives.
class Watch {
  public:
    Watch();
    ~Watch();

  private:
    struct Before;
    std::unique_ptr<Before> before;
};

// Order between accesses: what happened before a meeting of some threads is seen by all of them behind it.
void begin_block_of_accesses();
void forget_accesses();  // of a launch that ended early
void all_met();
void lanes_met(int first, unsigned mask);
void never_waited_for(Thread& thread);  // ends the launch if the thread has copies under way

}  // namespace simt
