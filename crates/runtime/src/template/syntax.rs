//! What a template's text says, as a tree.

use std::rc::Rc;

use super::lex::Span;

/// An expression at its place.
#[derive(Debug, Clone)]
pub(super) struct Expr {
    pub(super) span: Span,
    pub(super) kind: ExprKind,
}

#[derive(Debug, Clone)]
pub(super) enum ExprKind {
    None,
    Ellipsis,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<str>),
    Format(Vec<Expr>),
    Name(Rc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// `[item for target in iterable if condition]`.
    Comprehension {
        item: Box<Expr>,
        target: Box<Expr>,
        iterable: Box<Expr>,
        condition: Option<Box<Expr>>,
    },
    Attribute(Box<Expr>, Rc<str>),
    Index(Box<Expr>, Box<Expr>),
    Slice(Option<Box<Expr>>, Option<Box<Expr>>, Option<Box<Expr>>),
    Call(Box<Expr>, Vec<Arg>),
    Unary(&'static str, Box<Expr>),
    Binary(&'static str, Box<Expr>, Box<Expr>),
    /// `a < b <= c`.
    Compare(Box<Expr>, Vec<(&'static str, Expr)>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    /// `then if condition else otherwise`.
    If {
        condition: Box<Expr>,
        then: Box<Expr>,
        otherwise: Box<Expr>,
    },
    Star(Box<Expr>),
}

/// An argument of a call.
#[derive(Debug, Clone)]
pub(super) enum Arg {
    Positional(Expr),
    Named(Rc<str>, Expr),
    /// `*values`.
    Star(Expr),
    /// `**values`.
    DoubleStar(Expr),
}

/// A statement at its place.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) span: Span,
    pub(super) kind: StatementKind,
}

#[derive(Debug, Clone)]
pub(super) enum StatementKind {
    Expr(Expr),
    /// `a = b = value`.
    Assign(Vec<Expr>, Expr),
    /// `a += value`.
    Update(Expr, &'static str, Expr),
    If(Expr, Vec<Statement>, Vec<Statement>),
    For(Expr, Expr, Vec<Statement>),
    Return(Option<Expr>),
    Raise(Option<Expr>),
    Assert(Expr),
    Define(Rc<Function>),
    Class(Rc<ClassSyntax>),
    Pass,
    Break,
    Continue,
    /// `import a.b as c`, `from a import b as c`: where from, and what is called how.
    Import(Vec<(Rc<str>, Rc<str>)>),
}

/// `def name(...):`.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: Rc<str>,
    pub(super) span: Span,
    pub(super) params: Vec<Param>,
    pub(super) body: Vec<Statement>,
    /// Whether `@model` stands over it.
    pub(super) is_model: bool,
    /// Whether `@staticmethod` does.
    pub(super) is_static: bool,
}

/// A parameter of a function.
#[derive(Debug, Clone)]
pub(super) struct Param {
    pub(super) name: Rc<str>,
    pub(super) default: Option<Expr>,
    pub(super) kind: ParamKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParamKind {
    Plain,
    /// Behind a `*`.
    NamedOnly,
    /// `*args`.
    Star,
    /// `**kwargs`.
    DoubleStar,
}

/// `class Name(Base):`.
#[derive(Debug)]
pub(super) struct ClassSyntax {
    pub(super) name: Rc<str>,
    pub(super) base: Option<Expr>,
    pub(super) body: Vec<Statement>,
    pub(super) is_model: bool,
}
