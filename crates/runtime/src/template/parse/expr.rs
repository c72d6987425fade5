//! Expressions, by precedence.

use super::Parser;
use crate::template::fault::Fault;
use crate::template::lex::{Piece, Span, TokenKind, lex_expr};
use crate::template::syntax::{Arg, Expr, ExprKind};

/// Binary operators from the loosest to the tightest; `**` binds tighter than the sign in front of it, and stands apart.
const LEVELS: [&[&str]; 2] = [&["+", "-"], &["*", "/", "//", "%", "@"]];

impl Parser<'_> {
    fn node(&self, start: &Span, kind: ExprKind) -> Expr {
        Expr {
            span: self.since(start),
            kind,
        }
    }

    /// One expression, or several with commas between them, which are a tuple.
    pub(super) fn expr_list(&mut self) -> Result<Expr, Fault> {
        self.listed(Self::starred)
    }

    /// What a loop assigns to.
    pub(super) fn targets(&mut self) -> Result<Expr, Fault> {
        self.listed(|parser| parser.deeper(Self::postfix))
    }

    fn listed(&mut self, read: impl Fn(&mut Self) -> Result<Expr, Fault>) -> Result<Expr, Fault> {
        let start = self.span();
        let first = read(self)?;
        if !self.is_sign(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.take_sign(",") {
            let is_end = matches!(
                self.token().kind,
                TokenKind::NewLine | TokenKind::End | TokenKind::Sign("=" | ")" | "]")
            ) || self.is_word("in");
            if is_end {
                break;
            }
            items.push(read(self)?);
        }
        Ok(self.node(&start, ExprKind::Tuple(items)))
    }

    fn starred(&mut self) -> Result<Expr, Fault> {
        let start = self.span();
        if self.take_sign("*") {
            let inner = self.expr()?;
            return Ok(self.node(&start, ExprKind::Star(Box::new(inner))));
        }
        self.expr()
    }

    /// `a if b else c` and all that binds tighter.
    pub(super) fn expr(&mut self) -> Result<Expr, Fault> {
        self.deeper(|parser| {
            let start = parser.span();
            let then = parser.or()?;
            if !parser.take_word("if") {
                return Ok(then);
            }
            let condition = Box::new(parser.or()?);
            if !parser.take_word("else") {
                return Err(parser.unexpected("`else`"));
            }
            let otherwise = Box::new(parser.expr()?);
            let then = Box::new(then);
            let kind = ExprKind::If {
                condition,
                then,
                otherwise,
            };
            Ok(parser.node(&start, kind))
        })
    }

    fn or(&mut self) -> Result<Expr, Fault> {
        let start = self.span();
        let mut left = self.and()?;
        while self.take_word("or") {
            let right = self.and()?;
            left = self.node(&start, ExprKind::Or(Box::new(left), Box::new(right)));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, Fault> {
        let start = self.span();
        let mut left = self.not()?;
        while self.take_word("and") {
            let right = self.not()?;
            left = self.node(&start, ExprKind::And(Box::new(left), Box::new(right)));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr, Fault> {
        let start = self.span();
        if self.take_word("not") {
            let inner = self.deeper(Self::not)?;
            return Ok(self.node(&start, ExprKind::Unary("not", Box::new(inner))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr, Fault> {
        let start = self.span();
        let first = self.arithmetic(0)?;
        let mut others = Vec::new();
        while let Some(sign) = self.comparing() {
            others.push((sign, self.arithmetic(0)?));
        }
        if others.is_empty() {
            return Ok(first);
        }
        Ok(self.node(&start, ExprKind::Compare(Box::new(first), others)))
    }

    fn comparing(&mut self) -> Option<&'static str> {
        for sign in ["==", "!=", "<=", ">=", "<", ">"] {
            if self.take_sign(sign) {
                return Some(sign);
            }
        }
        if self.is_word("not") {
            self.at += 1;
            if self.take_word("in") {
                return Some("not in");
            }
            self.at -= 1;
            return None;
        }
        if self.take_word("in") {
            return Some("in");
        }
        if self.take_word("is") {
            return Some(if self.take_word("not") { "is not" } else { "is" });
        }
        None
    }

    fn arithmetic(&mut self, level: usize) -> Result<Expr, Fault> {
        let Some(signs) = LEVELS.get(level) else {
            return self.unary();
        };
        let start = self.span();
        let mut left = self.arithmetic(level + 1)?;
        while let Some(sign) = signs.iter().find(|sign| self.is_sign(sign)) {
            self.at += 1;
            let right = self.arithmetic(level + 1)?;
            left = self.node(&start, ExprKind::Binary(sign, Box::new(left), Box::new(right)));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, Fault> {
        let start = self.span();
        for sign in ["-", "+"] {
            if self.take_sign(sign) {
                let inner = self.deeper(Self::unary)?;
                return Ok(self.node(&start, ExprKind::Unary(sign, Box::new(inner))));
            }
        }
        let base = self.postfix()?;
        if self.take_sign("**") {
            let power = self.deeper(Self::unary)?;
            return Ok(self.node(&start, ExprKind::Binary("**", Box::new(base), Box::new(power))));
        }
        Ok(base)
    }

    fn postfix(&mut self) -> Result<Expr, Fault> {
        let start = self.span();
        let mut value = self.atom()?;
        loop {
            let inner = Box::new(value);
            let kind = if self.take_sign(".") {
                ExprKind::Attribute(inner, self.name()?)
            } else if self.take_sign("(") {
                ExprKind::Call(inner, self.args()?)
            } else if self.take_sign("[") {
                let index = self.listed(Self::subscript)?;
                self.sign("]")?;
                ExprKind::Index(inner, Box::new(index))
            } else {
                return Ok(*inner);
            };
            value = self.node(&start, kind);
        }
    }

    fn args(&mut self) -> Result<Vec<Arg>, Fault> {
        let mut args = Vec::new();
        while !self.take_sign(")") {
            let arg = if self.take_sign("**") {
                Arg::DoubleStar(self.expr()?)
            } else if self.take_sign("*") {
                Arg::Star(self.expr()?)
            } else {
                let value = self.expr()?;
                if self.is_word("for") {
                    let start = value.span.clone();
                    Arg::Positional(self.comprehension(&start, value)?)
                } else if self.is_sign("=")
                    && let ExprKind::Name(name) = &value.kind
                {
                    let name = name.clone();
                    self.at += 1;
                    Arg::Named(name, self.expr()?)
                } else {
                    Arg::Positional(value)
                }
            };
            args.push(arg);
            if !self.is_sign(")") {
                self.sign(",")?;
            }
        }
        Ok(args)
    }

    fn subscript(&mut self) -> Result<Expr, Fault> {
        let start = self.span();
        let is_bound = |parser: &Self| !parser.is_sign(":") && !parser.is_sign("]") && !parser.is_sign(",");
        let from = if is_bound(self) {
            Some(Box::new(self.expr()?))
        } else {
            None
        };
        if !self.take_sign(":") {
            return from.map(|from| *from).ok_or_else(|| self.unexpected("an index"));
        }
        let to = if is_bound(self) {
            Some(Box::new(self.expr()?))
        } else {
            None
        };
        let step = if self.take_sign(":") && is_bound(self) {
            Some(Box::new(self.expr()?))
        } else {
            None
        };
        Ok(self.node(&start, ExprKind::Slice(from, to, step)))
    }

    fn atom(&mut self) -> Result<Expr, Fault> {
        let start = self.span();
        let kind = match self.token().kind.clone() {
            TokenKind::Int(value) => ExprKind::Int(value),
            TokenKind::Float(value) => ExprKind::Float(value),
            TokenKind::Str(text) => {
                self.at += 1;
                let mut text = text;
                // Strings beside each other are one.
                while let TokenKind::Str(more) = &self.token().kind {
                    text.push_str(more);
                    self.at += 1;
                }
                return Ok(self.node(&start, ExprKind::Str(text.as_str().into())));
            }
            TokenKind::Format(pieces) => {
                self.at += 1;
                return self.format(&start, &pieces);
            }
            TokenKind::Name(name) => match name.as_str() {
                "None" => ExprKind::None,
                "True" => ExprKind::Bool(true),
                "False" => ExprKind::Bool(false),
                "lambda" | "await" | "yield" => {
                    let text = format!("`{name}` is not in the part of Python that templates are written in");
                    return Err(Fault::new(text).at(&start));
                }
                "if" | "else" | "for" | "in" | "and" | "or" | "not" | "is" | "return" | "def" | "class" => {
                    return Err(self.unexpected("a value"));
                }
                _ => ExprKind::Name(name.as_str().into()),
            },
            TokenKind::Sign("...") => ExprKind::Ellipsis,
            TokenKind::Sign("(") => {
                self.at += 1;
                return self.deeper(|parser| parser.parenthesis(&start));
            }
            TokenKind::Sign("[") => {
                self.at += 1;
                return self.deeper(|parser| parser.list(&start));
            }
            TokenKind::Sign("{") => {
                self.at += 1;
                return self.deeper(|parser| parser.dict(&start));
            }
            _ => return Err(self.unexpected("a value")),
        };
        self.at += 1;
        Ok(self.node(&start, kind))
    }

    fn parenthesis(&mut self, start: &Span) -> Result<Expr, Fault> {
        if self.take_sign(")") {
            return Ok(self.node(start, ExprKind::Tuple(Vec::new())));
        }
        let inner = self.expr_list()?;
        if self.is_word("for") {
            let out = self.comprehension(start, inner)?;
            self.sign(")")?;
            return Ok(out);
        }
        self.sign(")")?;
        Ok(inner)
    }

    fn list(&mut self, start: &Span) -> Result<Expr, Fault> {
        let mut items = Vec::new();
        while !self.take_sign("]") {
            let item = self.starred()?;
            if items.is_empty() && self.is_word("for") {
                let out = self.comprehension(start, item)?;
                self.sign("]")?;
                return Ok(out);
            }
            items.push(item);
            if !self.is_sign("]") {
                self.sign(",")?;
            }
        }
        Ok(self.node(start, ExprKind::List(items)))
    }

    fn comprehension(&mut self, start: &Span, item: Expr) -> Result<Expr, Fault> {
        self.at += 1;
        let target = Box::new(self.targets()?);
        if !self.take_word("in") {
            return Err(self.unexpected("`in`"));
        }
        let iterable = Box::new(self.or()?);
        let condition = if self.take_word("if") {
            Some(Box::new(self.or()?))
        } else {
            None
        };
        if self.is_word("for") || self.is_word("if") {
            return Err(
                Fault::new("one `for` and one `if` are all that a comprehension may have").at(&self.span()),
            );
        }
        let item = Box::new(item);
        let kind = ExprKind::Comprehension {
            item,
            target,
            iterable,
            condition,
        };
        Ok(self.node(start, kind))
    }

    fn dict(&mut self, start: &Span) -> Result<Expr, Fault> {
        let mut entries = Vec::new();
        while !self.take_sign("}") {
            let key = self.expr()?;
            self.sign(":")?;
            entries.push((key, self.expr()?));
            if !self.is_sign("}") {
                self.sign(",")?;
            }
        }
        Ok(self.node(start, ExprKind::Dict(entries)))
    }

    fn format(&mut self, start: &Span, pieces: &[Piece]) -> Result<Expr, Fault> {
        let mut parts = Vec::new();
        for piece in pieces {
            parts.push(match piece {
                Piece::Text(text) => Expr {
                    span: start.clone(),
                    kind: ExprKind::Str(text.as_str().into()),
                },
                Piece::Expr(span) => {
                    let mut inner = Parser {
                        text: self.text,
                        tokens: lex_expr(self.text, span)?,
                        at: 0,
                        depth: self.depth,
                    };
                    let expr = inner.expr()?;
                    if !inner.is_at(&TokenKind::End) {
                        return Err(inner.unexpected("`}`"));
                    }
                    expr
                }
            });
        }
        Ok(self.node(start, ExprKind::Format(parts)))
    }
}
