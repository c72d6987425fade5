//! Tokens to statements: the part of Python's grammar that network classes are written in.
//!
//! Source: <https://docs.python.org/3/reference/grammar.html>. Annotations are read and forgotten.

mod expr;

use std::rc::Rc;

use super::fault::Fault;
use super::lex::{Span, Token, TokenKind, lex};
use super::syntax::{ClassSyntax, Expr, ExprKind, Function, Param, ParamKind, Statement, StatementKind};

/// Statements and expressions that may stand within each other.
const MAX_DEPTH: usize = 100;

/// Reads the statements of a text.
pub(super) fn parse(text: &str) -> Result<Vec<Statement>, Fault> {
    let mut parser = Parser {
        text,
        tokens: lex(text)?,
        at: 0,
        depth: 0,
    };
    let mut statements = Vec::new();
    while !parser.is_at(&TokenKind::End) {
        parser.statement(&mut statements)?;
    }
    Ok(statements)
}

/// Reads `name(parameter, other=1)`.
pub(super) fn parse_signature(text: &str) -> Result<Vec<Param>, Fault> {
    let mut parser = Parser {
        text,
        tokens: lex(text)?,
        at: 0,
        depth: 0,
    };
    parser.name()?;
    parser.params()
}

struct Parser<'t> {
    text: &'t str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn token(&self) -> &Token {
        // The last token is `End`, which nothing takes.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn span(&self) -> Span {
        self.token().span.clone()
    }

    /// From `start` to the end of what was read last.
    fn since(&self, start: &Span) -> Span {
        let end = self
            .at
            .checked_sub(1)
            .map_or(start.end, |at| self.tokens[at].span.end);
        start.start..end.max(start.start)
    }

    fn is_at(&self, kind: &TokenKind) -> bool {
        self.token().kind == *kind
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.token().kind, TokenKind::Sign(found) if found == sign)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(&self.token().kind, TokenKind::Name(found) if found == word)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self, wanted: &str) -> Fault {
        let found = match &self.token().kind {
            TokenKind::NewLine => "the end of the line".to_owned(),
            TokenKind::End => "the end of the text".to_owned(),
            TokenKind::Indent => "a deeper indentation".to_owned(),
            TokenKind::Dedent => "the end of the block".to_owned(),
            _ => format!("`{}`", &self.text[self.span()]),
        };
        Fault::new(format!("expected {wanted}, and found {found}")).at(&self.span())
    }

    fn sign(&mut self, sign: &'static str) -> Result<(), Fault> {
        if self.take_sign(sign) {
            return Ok(());
        }
        Err(self.unexpected(&format!("`{sign}`")))
    }

    fn name(&mut self) -> Result<Rc<str>, Fault> {
        match &self.token().kind {
            TokenKind::Name(name) => {
                let name: Rc<str> = name.as_str().into();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Fault::new("too much within each other").at(&self.span()));
        }
        let out = read(self);
        self.depth -= 1;
        out
    }

    /// Reads what stands on a line, and the block below it where it has one.
    fn statement(&mut self, out: &mut Vec<Statement>) -> Result<(), Fault> {
        let start = self.span();
        let compound = match &self.token().kind {
            TokenKind::Name(word) => match word.as_str() {
                "if" => Some(self.deeper(Self::if_statement)?),
                "for" => Some(self.deeper(Self::for_statement)?),
                "def" => Some(self.deeper(|parser| parser.define(&[]))?),
                "class" => Some(self.deeper(|parser| parser.class(false))?),
                word @ ("while" | "try" | "with" | "async" | "del" | "global" | "nonlocal" | "lambda"
                | "yield") => {
                    let text = format!("`{word}` is not in the part of Python that templates are written in");
                    return Err(Fault::new(text).at(&start));
                }
                _ => None,
            },
            TokenKind::Sign("@") => Some(self.deeper(Self::decorated)?),
            _ => None,
        };
        if let Some(kind) = compound {
            let span = self.since(&start);
            out.push(Statement { span, kind });
            return Ok(());
        }
        loop {
            let start = self.span();
            let kind = self.simple()?;
            let span = self.since(&start);
            out.push(Statement { span, kind });
            let is_more = self.take_sign(";");
            if self.is_at(&TokenKind::NewLine) {
                self.at += 1;
                return Ok(());
            }
            if !is_more {
                return Err(self.unexpected("the end of the line"));
            }
        }
    }

    fn simple(&mut self) -> Result<StatementKind, Fault> {
        if let TokenKind::Name(word) = &self.token().kind {
            match word.as_str() {
                "pass" => {
                    self.at += 1;
                    return Ok(StatementKind::Pass);
                }
                "break" => {
                    self.at += 1;
                    return Ok(StatementKind::Break);
                }
                "continue" => {
                    self.at += 1;
                    return Ok(StatementKind::Continue);
                }
                "return" | "raise" => {
                    let is_return = word == "return";
                    self.at += 1;
                    let value = if self.is_at(&TokenKind::NewLine) {
                        None
                    } else {
                        Some(self.expr_list()?)
                    };
                    return Ok(match is_return {
                        true => StatementKind::Return(value),
                        false => StatementKind::Raise(value),
                    });
                }
                "assert" => {
                    self.at += 1;
                    let condition = self.expr()?;
                    if self.take_sign(",") {
                        self.expr()?;
                    }
                    return Ok(StatementKind::Assert(condition));
                }
                "import" | "from" => return self.import(),
                _ => {}
            }
        }
        let first = self.expr_list()?;
        if self.take_sign(":") {
            // An annotation.
            self.expr()?;
            if !self.is_sign("=") {
                return Ok(StatementKind::Pass);
            }
        }
        for sign in ["+=", "-=", "*=", "/=", "//=", "%=", "**=", "@="] {
            if self.take_sign(sign) {
                let value = self.expr_list()?;
                check_target(&first)?;
                return Ok(StatementKind::Update(first, &sign[..sign.len() - 1], value));
            }
        }
        if !self.is_sign("=") {
            return Ok(StatementKind::Expr(first));
        }
        let mut targets = vec![first];
        while self.take_sign("=") {
            targets.push(self.expr_list()?);
        }
        let value = targets.pop().expect("one was read before the sign");
        for target in &targets {
            check_target(target)?;
        }
        Ok(StatementKind::Assign(targets, value))
    }

    fn import(&mut self) -> Result<StatementKind, Fault> {
        let is_from = self.take_word("from");
        if !is_from {
            self.at += 1;
        }
        let mut names = Vec::new();
        let module = self.dotted()?;
        if !is_from {
            self.imported(&module, &mut names)?;
            while self.take_sign(",") {
                let module = self.dotted()?;
                self.imported(&module, &mut names)?;
            }
            return Ok(StatementKind::Import(names));
        }
        if !self.take_word("import") {
            return Err(self.unexpected("`import`"));
        }
        let is_open = self.take_sign("(");
        if self.take_sign("*") {
            return Ok(StatementKind::Import(names));
        }
        loop {
            let name = self.name()?;
            self.imported(&format!("{module}.{name}"), &mut names)?;
            if !self.take_sign(",") || is_open && self.is_sign(")") {
                break;
            }
        }
        if is_open {
            self.sign(")")?;
        }
        Ok(StatementKind::Import(names))
    }

    fn dotted(&mut self) -> Result<String, Fault> {
        let mut name = String::new();
        while self.take_sign(".") {}
        loop {
            name.push_str(&self.name()?);
            if !self.take_sign(".") {
                return Ok(name);
            }
            name.push('.');
        }
    }

    /// `as name`, else the name that the import binds.
    fn imported(&mut self, module: &str, names: &mut Vec<(Rc<str>, Rc<str>)>) -> Result<(), Fault> {
        let name = if self.take_word("as") {
            self.name()?
        } else {
            module.rsplit('.').next().unwrap_or(module).into()
        };
        names.push((module.into(), name));
        Ok(())
    }

    fn block(&mut self) -> Result<Vec<Statement>, Fault> {
        self.sign(":")?;
        let mut out = Vec::new();
        if !self.is_at(&TokenKind::NewLine) {
            self.statement(&mut out)?;
            return Ok(out);
        }
        self.at += 1;
        if !self.is_at(&TokenKind::Indent) {
            return Err(self.unexpected("an indented block"));
        }
        self.at += 1;
        while !self.is_at(&TokenKind::Dedent) && !self.is_at(&TokenKind::End) {
            self.statement(&mut out)?;
        }
        if self.is_at(&TokenKind::Dedent) {
            self.at += 1;
        }
        Ok(out)
    }

    fn if_statement(&mut self) -> Result<StatementKind, Fault> {
        self.at += 1;
        let condition = self.expr()?;
        let then = self.block()?;
        let start = self.span();
        let otherwise = if self.is_word("elif") {
            let kind = self.deeper(Self::if_statement)?;
            let span = self.since(&start);
            vec![Statement { span, kind }]
        } else if self.take_word("else") {
            self.block()?
        } else {
            Vec::new()
        };
        Ok(StatementKind::If(condition, then, otherwise))
    }

    fn for_statement(&mut self) -> Result<StatementKind, Fault> {
        self.at += 1;
        let target = self.targets()?;
        if !self.take_word("in") {
            return Err(self.unexpected("`in`"));
        }
        let iterable = self.expr_list()?;
        let body = self.block()?;
        Ok(StatementKind::For(target, iterable, body))
    }

    fn decorated(&mut self) -> Result<StatementKind, Fault> {
        let mut names = Vec::new();
        while self.take_sign("@") {
            let start = self.span();
            let name = self.dotted()?;
            if !matches!(
                name.as_str(),
                "model" | "staticmethod" | "torch.no_grad" | "property"
            ) || name == "property"
            {
                let text =
                    format!("`@{name}` is not known: `@model` is, which makes a template of what follows");
                return Err(Fault::new(text).at(&self.since(&start)));
            }
            if self.take_sign("(") {
                self.sign(")")?;
            }
            names.push(name);
            if !self.is_at(&TokenKind::NewLine) {
                return Err(self.unexpected("the end of the line"));
            }
            self.at += 1;
        }
        if self.is_word("class") {
            return self.class(names.iter().any(|name| name == "model"));
        }
        if self.is_word("def") {
            return self.define(&names);
        }
        Err(self.unexpected("`def` or `class`"))
    }

    fn define(&mut self, decorators: &[String]) -> Result<StatementKind, Fault> {
        self.at += 1;
        let span = self.span();
        let name = self.name()?;
        let params = self.params()?;
        if self.take_sign("->") {
            self.expr()?;
        }
        let body = self.block()?;
        let is = |decorator: &str| decorators.iter().any(|name| name == decorator);
        Ok(StatementKind::Define(Rc::new(Function {
            name,
            span,
            params,
            body,
            is_model: is("model"),
            is_static: is("staticmethod"),
        })))
    }

    fn params(&mut self) -> Result<Vec<Param>, Fault> {
        self.sign("(")?;
        let mut params: Vec<Param> = Vec::new();
        let mut later = ParamKind::Plain;
        while !self.take_sign(")") {
            let start = self.span();
            let kind = if self.take_sign("**") {
                ParamKind::DoubleStar
            } else if self.take_sign("*") {
                if self.take_sign(",") {
                    later = ParamKind::NamedOnly;
                    continue;
                }
                ParamKind::Star
            } else {
                later
            };
            let name = self.name()?;
            if params.iter().any(|param| param.name == name) {
                return Err(Fault::new(format!("two parameters are called `{name}`")).at(&start));
            }
            if self.take_sign(":") {
                self.expr()?;
            }
            let default = if self.take_sign("=") {
                Some(self.expr()?)
            } else {
                None
            };
            if kind == ParamKind::Star {
                later = ParamKind::NamedOnly;
            }
            params.push(Param { name, default, kind });
            if !self.is_sign(")") {
                self.sign(",")?;
            }
        }
        Ok(params)
    }

    fn class(&mut self, is_model: bool) -> Result<StatementKind, Fault> {
        self.at += 1;
        let name = self.name()?;
        let mut base = None;
        if self.take_sign("(") {
            if !self.is_sign(")") {
                base = Some(self.expr()?);
            }
            if self.is_sign(",") {
                return Err(Fault::new("a class has one base").at(&self.span()));
            }
            self.sign(")")?;
        }
        let body = self.block()?;
        Ok(StatementKind::Class(Rc::new(ClassSyntax {
            name,
            base,
            body,
            is_model,
        })))
    }
}

fn check_target(target: &Expr) -> Result<(), Fault> {
    match &target.kind {
        ExprKind::Name(_) | ExprKind::Attribute(..) | ExprKind::Index(..) => Ok(()),
        ExprKind::Tuple(items) | ExprKind::List(items) => items.iter().try_for_each(check_target),
        _ => Err(Fault::new("nothing can be assigned to this").at(&target.span)),
    }
}
