// Switching between stacks. The functions of ucontext.h ask the kernel twice per switch, which is
// most of an emulation; on x86-64 a few instructions do the same.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
// Saves the registers that a call keeps and the stack pointer to *from, and goes on at `to`.
extern "C" void mmssl_emu_switch(void** from, void* to);
asm(R"(
.text
.weak mmssl_emu_switch
.type mmssl_emu_switch, @function
mmssl_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mmssl_emu_switch, .-mmssl_emu_switch
)");
#else
#include <ucontext.h>
#endif

namespace emu {

// A point to go on at.
struct Context {
#if defined(__x86_64__)
  void* stack = nullptr;
  // Calls `entry`, which never returns, on a stack of its own at the first switch.
  void start(std::vector<char>& memory, void (*entry)()) {
    const auto top = (reinterpret_cast<uintptr_t>(memory.data()) + memory.size()) & ~uintptr_t(15);
    void** at = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, no caller
    for (int n = 0; n < 8; ++n) at[n] = nullptr;
    at[6] = reinterpret_cast<void*>(entry);
    stack = at;
  }
  void switch_to(Context& next) { mmssl_emu_switch(&stack, next.stack); }
#else
  ucontext_t context;
  void start(std::vector<char>& memory, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = memory.data();
    context.uc_stack.ss_size = memory.size();
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& next) { swapcontext(&context, &next.context); }
#endif
};

}  // namespace emu
