//! A short text for a value, in Python's spelling: for people, not for parsing.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::fmt::Write;

use super::{Arena, Node, NodeId};
use crate::{numpy, objects};

/// About as much as fits on a line.
const MAX_CHARS: usize = 96;
const MAX_DEPTH: usize = 4;

enum Piece {
    Text(&'static str),
    Value(NodeId, usize),
    Name(NodeId),
}

/// `node` as Python would print it, cut with `...` where it gets long.
pub(crate) fn render(arena: &Arena<'_>, node: NodeId) -> String {
    let mut out = String::new();
    let mut todo = vec![Piece::Value(node, 0)];
    while let Some(piece) = todo.pop() {
        if out.len() > MAX_CHARS {
            // A cut inside a character would not be text.
            let end = out
                .char_indices()
                .map(|(at, _)| at)
                .take_while(|&at| at <= MAX_CHARS)
                .last();
            out.truncate(end.unwrap_or(0));
            out.push_str("...");
            return out;
        }
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Name(node) => out.push_str(&arena.str(node).unwrap_or_default()),
            Piece::Value(node, depth) => value(arena, node, depth, &mut out, &mut todo),
        }
    }
    out
}

fn value(arena: &Arena<'_>, node: NodeId, depth: usize, out: &mut String, todo: &mut Vec<Piece>) {
    match arena.node(node) {
        Node::None => out.push_str("None"),
        Node::Bool(true) => out.push_str("True"),
        Node::Bool(false) => out.push_str("False"),
        Node::Int(int) => write!(out, "{int}").expect("a String takes every write"),
        Node::BigInt(span) => big_int(arena.bytes(span), out),
        Node::Float(float) => out.push_str(&float_repr(float)),
        Node::Str(span) => {
            // No more of it than can be printed: it may be a megabyte, and repeated.
            let bytes = arena.bytes(span);
            let shown = bytes
                .get(..bytes.len().min(MAX_CHARS.saturating_mul(4)))
                .unwrap_or_default();
            quoted(&String::from_utf8_lossy(shown), out);
        }
        Node::Bytes(span) => {
            write!(out, "<{} bytes>", span.len).expect("a String takes every write");
        }
        Node::Global => {
            let (module, name) = arena.global_name(node).unwrap_or_default();
            write!(out, "{module}.{name}").expect("a String takes every write");
        }
        Node::Persistent(_) => out.push_str("<storage>"),
        _ if depth >= MAX_DEPTH => out.push_str("..."),
        Node::Tuple => sequence("(", arena.items(node), ")", depth, todo),
        Node::List => sequence("[", arena.items(node), "]", depth, todo),
        Node::Set | Node::FrozenSet => sequence("{", arena.items(node), "}", depth, todo),
        Node::Dict => pairs("{", &objects::pairs(arena.items(node)), "}", ": ", depth, todo),
        Node::Call { .. } | Node::CallEx { .. } => object(arena, node, depth, out, todo),
    }
}

fn object(arena: &Arena<'_>, node: NodeId, depth: usize, out: &mut String, todo: &mut Vec<Piece>) {
    if let Some((shape, dtype)) = objects::tensor_summary(arena, node) {
        write!(out, "<tensor {dtype}{shape:?}>").expect("a String takes every write");
        return;
    }
    if let Some(array) = numpy::array(arena, node) {
        write!(out, "{array}").expect("a String takes every write");
        return;
    }
    if let Some(entries) = objects::mapping(arena, node) {
        return pairs("{", &entries, "}", ": ", depth, todo);
    }
    let (module, name) = arena.callee_name(node).unwrap_or(("", "<object>"));
    if !matches!(module, "" | "builtins" | "__builtin__") {
        out.push_str(module);
        out.push('.');
    }
    out.push_str(name);
    if let Some(state) = objects::attributes(arena, node) {
        return pairs("(", &state, ")", "=", depth, todo);
    }
    let items = if arena.appended(node).is_empty() {
        arena.args(node)
    } else {
        arena.appended(node)
    };
    sequence("(", items, ")", depth, todo);
}

/// Pushes the pieces in reverse, and no more of them than can be printed.
fn sequence(open: &'static str, items: &[NodeId], close: &'static str, depth: usize, todo: &mut Vec<Piece>) {
    todo.push(Piece::Text(close));
    let shown = items.get(..items.len().min(MAX_CHARS)).unwrap_or_default();
    for (i, &item) in shown.iter().enumerate().rev() {
        todo.push(Piece::Value(item, depth.saturating_add(1)));
        if i > 0 {
            todo.push(Piece::Text(", "));
        }
    }
    todo.push(Piece::Text(open));
}

fn pairs(
    open: &'static str,
    entries: &[(NodeId, NodeId)],
    close: &'static str,
    between: &'static str,
    depth: usize,
    todo: &mut Vec<Piece>,
) {
    todo.push(Piece::Text(close));
    let shown = entries.get(..entries.len().min(MAX_CHARS)).unwrap_or_default();
    for (i, &(key, value)) in shown.iter().enumerate().rev() {
        todo.push(Piece::Value(value, depth.saturating_add(1)));
        todo.push(Piece::Text(between));
        todo.push(if between == "=" {
            Piece::Name(key)
        } else {
            Piece::Value(key, depth.saturating_add(1))
        });
        if i > 0 {
            todo.push(Piece::Text(", "));
        }
    }
    todo.push(Piece::Text(open));
}

fn quoted(text: &str, out: &mut String) {
    let shown: String = text.chars().take(MAX_CHARS).collect();
    let escaped = shown.escape_debug().to_string().replace("\\\"", "\"");
    write!(out, "'{escaped}'").expect("a String takes every write");
}

fn big_int(bytes: &[u8], out: &mut String) {
    if bytes.len() <= 16 {
        let sign = if bytes.last().is_some_and(|&last| last >= 0x80) {
            0xff
        } else {
            0
        };
        let mut wide = [sign; 16];
        for (to, from) in wide.iter_mut().zip(bytes) {
            *to = *from;
        }
        write!(out, "{}", i128::from_le_bytes(wide)).expect("a String takes every write");
    } else {
        write!(out, "<integer of {} bytes>", bytes.len()).expect("a String takes every write");
    }
}

/// As Python's `repr`: the shortest digits that give the value back.
pub(crate) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{value:e}");
        // Python writes two digits of exponent at least, and always its sign.
        return match text.split_once('e') {
            Some((digits, power)) => match power.strip_prefix('-') {
                Some(power) => format!("{digits}e-{power:0>2}"),
                None => format!("{digits}e+{power:0>2}"),
            },
            None => text,
        };
    }
    format!("{value:?}")
}
