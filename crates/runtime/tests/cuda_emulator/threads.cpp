// Blocks of fibers. A fiber runs until it waits; the next that can run is then switched to, so that a block is one
// processor thread and its outcome does not depend on time. Barriers count those that wait; where all wait and none can
// go on, the kernel is wrong and the process ends with a sentence.
#include "threads.h"

#include <sys/mman.h>
#include <vector>

namespace emulator {
Thread *current;
Dim3 block_index, block_size, grid_size;

namespace {
const size_t STACK = 64 * 1024;

struct Fiber {
    void *stack_pointer;
    Thread thread;
    bool done;
    // The turn of its block's or warp's barrier that it waits for to end, 0 where it waits for none.
    u64 block_wait, warp_wait;
};
struct Barrier {
    u32 arrived = 0;
    u64 turn = 1;
};

std::vector<Fiber> fibers;
std::vector<Barrier> warp_barriers;
std::vector<u64> lane_words;
Barrier block_turns;
u32 n_threads;
void *scheduler;
const std::function<void()> *body;
const char *running;
char *stacks;
size_t n_stacks;

// Saves what the System V ABI asks a callee to save, and goes on with another stack.
extern "C" void emulator_switch(void **save, void *load);
#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
emulator_switch:
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
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulator_switch
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "the emulator knows x86-64 and AArch64"
#endif

Fiber &self() { return *(Fiber *)((char *)current - offsetof(Fiber, thread)); }

void yield() {
    Fiber &fiber = self();
    emulator_switch(&fiber.stack_pointer, scheduler);
}

void begin() {
    (*body)();
    self().done = true;
    yield();
    abort();
}

void wait(Barrier &barrier, u32 members, u64 Fiber::*waits_for) {
    Fiber &fiber = self();
    if (++barrier.arrived == members) {
        barrier.arrived = 0;
        barrier.turn++;
        return;
    }
    fiber.*waits_for = barrier.turn;
    yield();
    fiber.*waits_for = 0;
}

bool can_run(const Fiber &fiber) {
    if (fiber.done) return false;
    if (fiber.block_wait) return block_turns.turn > fiber.block_wait;
    if (fiber.warp_wait) return warp_barriers[fiber.thread.warp].turn > fiber.warp_wait;
    return true;
}

void prepare(u32 at) {
    Fiber &fiber = fibers[at];
    fiber = Fiber{};
    u32 rest = at / block_size.x;
    fiber.thread = {{at % block_size.x, rest % block_size.y, rest / block_size.y}, at % 32, at / 32};
    char *top = stacks + (at + 1) * STACK - 64;
    // As if emulator_switch had saved it: zeros in the registers, and `begin` to return to.
    memset(top - 192, 0, 192 + 64);
#if defined(__x86_64__)
    void **frame = (void **)top;
    *--frame = nullptr; // keeps the stack at 16 bytes + 8 where `begin` starts, as after a call
    *--frame = (void *)begin;
    frame -= 6;
    fiber.stack_pointer = frame;
#else
    void **frame = (void **)(top - 160);
    frame[11] = (void *)begin;
    fiber.stack_pointer = frame;
#endif
}
} // namespace

void block_barrier() { wait(block_turns, n_threads, &Fiber::block_wait); }

void warp_barrier() {
    u32 warp = current->warp, members = n_threads - warp * 32 < 32 ? n_threads - warp * 32 : 32;
    wait(warp_barriers[warp], members, &Fiber::warp_wait);
}

u64 *lanes() { return &lane_words[current->warp * 32]; }

void run(const char *name, Dim3 grid, Dim3 block, const std::function<void()> &kernel) {
    n_threads = block.x * block.y * block.z;
    if (n_threads == 0 || n_threads > 1024) {
        fprintf(stderr, "emulator: `%s` was given a block of %u threads\n", name, n_threads);
        abort();
    }
    if (n_stacks < n_threads) {
        if (stacks) munmap(stacks, n_stacks * STACK);
        n_stacks = n_threads;
        stacks = (char *)mmap(nullptr, n_stacks * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stacks == MAP_FAILED) abort();
    }
    running = name;
    body = &kernel;
    block_size = block;
    grid_size = grid;
    fibers.resize(n_threads);
    for (u32 z = 0; z < grid.z; z++)
        for (u32 y = 0; y < grid.y; y++)
            for (u32 x = 0; x < grid.x; x++) {
                block_index = {x, y, z};
                block_turns = Barrier();
                warp_barriers.assign((n_threads + 31) / 32, Barrier());
                lane_words.assign((n_threads + 31) / 32 * 32, 0);
                for (u32 at = 0; at < n_threads; at++) prepare(at);
                u32 left = n_threads;
                while (left > 0) {
                    bool moved = false;
                    for (u32 at = 0; at < n_threads; at++) {
                        Fiber &fiber = fibers[at];
                        if (!can_run(fiber)) continue;
                        moved = true;
                        current = &fiber.thread;
                        emulator_switch(&scheduler, fiber.stack_pointer);
                        if (fiber.done) left--;
                    }
                    if (!moved) {
                        fprintf(stderr, "emulator: `%s`: %u threads wait for others that never come\n", name, left);
                        abort();
                    }
                }
            }
}

void tensor_core(float *sums, const u32 *a, const u32 *b, float (*to_float)(u16)) {
    // Registers of the warp, one number of each lane at a time.
    u64 *words = lanes();
    u32 lane = current->lane;
    u32 all_a[32][4], all_b[32][2];
    auto share = [&](u32 own, auto take) {
        words[lane] = own;
        warp_barrier();
        for (u32 other = 0; other < 32; other++) take(other, (u32)words[other]);
        warp_barrier();
    };
    for (int i = 0; i < 4; i++) share(a[i], [&](u32 other, u32 word) { all_a[other][i] = word; });
    for (int i = 0; i < 2; i++) share(b[i], [&](u32 other, u32 word) { all_b[other][i] = word; });
    // A: row = lane / 4 (+ 8 for registers 1 and 3), column = lane % 4 * 2 + half (+ 8 for registers 2 and 3).
    auto a_at = [&](u32 row, u32 k) {
        u32 word = all_a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
        return to_float((u16)(k % 2 ? word >> 16 : word));
    };
    // B: row k = lane % 4 * 2 + half (+ 8 for register 1), column = lane / 4.
    auto b_at = [&](u32 k, u32 column) {
        u32 word = all_b[column * 4 + k % 8 / 2][k / 8];
        return to_float((u16)(k % 2 ? word >> 16 : word));
    };
    // Sums: row = lane / 4 (+ 8 for numbers 2 and 3), column = lane % 4 * 2 + number % 2.
    for (u32 i = 0; i < 4; i++) {
        u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = sums[i];
        for (u32 k = 0; k < 16; k++) sum += a_at(row, k) * b_at(k, column);
        sums[i] = sum;
    }
}
} // namespace emulator
