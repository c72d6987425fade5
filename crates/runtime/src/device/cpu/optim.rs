//! `kernels/optim.cu`.

use super::Args;
use crate::device::backend::Kind;

pub(super) fn update(a: &Args, half_width: Kind, adam: bool) {
    let f = Kind::F32;
    let [_, step, _] = a.cursor(11);
    let (step, n_heads, per_head, decay) = (step + a.number(12), a.number(13), a.number(14), a.real(15));
    let (weights, gradients) = (a.reals(0, f), a.reals(5, f));
    let (rules, table) = (a.reals(9, f), a.reals(10, f));
    for at in 0..n_heads * per_head {
        let head = at / per_head;
        if a.numbers(8)[head] != 0 {
            continue;
        }
        let rule = &rules[head * 6..][..6];
        let now = &table[(step * n_heads + head) * 5..][..5];
        let [weight_decay, dampening, nesterov, beta2, eps, decoupled] =
            rule.try_into().expect("six of them");
        let [rate, momentum, step_size, root, first] = now.try_into().expect("five of them");
        let mut g = gradients[at] * a.reals(6, f)[head];
        if !a.is_null(7) {
            g *= a.reals(7, f)[head];
        }
        let mut w = weights[at];
        if decoupled != 0.0 {
            w *= 1.0 - rate * weight_decay;
        } else {
            g += weight_decay * w;
        }
        if adam {
            let m = momentum * a.reals(2, f)[at] + (1.0 - momentum) * g;
            let v = beta2 * a.reals(3, f)[at] + (1.0 - beta2) * g * g;
            a.set(2, f, at, m);
            a.set(3, f, at, v);
            w -= step_size * m / (v.sqrt() / root + eps);
        } else if momentum != 0.0 {
            let buffer = if first != 0.0 {
                g
            } else {
                momentum * a.reals(2, f)[at] + (1.0 - dampening) * g
            };
            a.set(2, f, at, buffer);
            w -= rate
                * if nesterov != 0.0 {
                    g + momentum * buffer
                } else {
                    buffer
                };
        } else {
            w -= rate * g;
        }
        a.set(0, f, at, w);
        if !a.is_null(1) {
            a.set(1, half_width, at, w);
        }
        if !a.is_null(4) {
            let before = a.reals(4, f)[at];
            a.set(
                4,
                f,
                at,
                if first != 0.0 {
                    w
                } else {
                    decay * before + (1.0 - decay) * w
                },
            );
        }
    }
}

pub(super) fn squares(a: &Args) {
    let (gradient, per_head) = (a.reals(1, Kind::F32), a.number(2));
    let norms = a.doubles(0);
    for (head, of_head) in gradient.chunks_exact(per_head).enumerate().take(norms.len()) {
        let sum: f64 = of_head.iter().map(|g| g * g).sum();
        let sum = if a.number(3) != 0 { norms[head] + sum } else { sum };
        a.put(0, head * 8, &sum.to_le_bytes());
    }
}

pub(super) fn clip_factor(a: &Args) {
    let (norms, scale) = (a.doubles(1), a.reals(2, Kind::F32));
    for head in 0..a.number(3) {
        let norm = norms[head].sqrt() * scale[head];
        a.set(0, Kind::F32, head, (a.real(4) / (norm + 1e-6)).min(1.0));
    }
}
