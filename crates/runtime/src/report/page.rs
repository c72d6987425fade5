//! HTML in the making: the only file that writes tags around text, and so the only one that has to escape it.

use std::fmt::Write;

use super::thumbnail::Thumbnail;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1a1a1a;--page:#fff;--line:#ddd;--faint:#767676;--c0:#2f6fd0;--c1:#d0572f;--c2:#2f9d63;--c3:#8a4fc0;--c4:#b8860b;--c5:#5a6b7a}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--page:#16181c;--line:#33373e;--faint:#8d939c;--c0:#6ea3f2;--c1:#f08a64;--c2:#5fc791;--c3:#b78be0;--c4:#dcae45;--c5:#9aa9b6}}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--page)}
h1{font-size:1.7rem;margin:0}h2{font-size:1.25rem;margin-top:2.2rem}.sub{color:var(--faint);margin:0 0 1rem}
table{border-collapse:collapse;margin:.5rem 0 1rem}td,th{padding:.2rem .7rem;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}table.plain td{text-align:left;overflow-wrap:anywhere}
.wide{overflow-x:auto}.matrix td{min-width:2.2rem;text-align:center;padding:.2rem .3rem}.matrix th{padding:.2rem .3rem;font-weight:400;text-align:right}
.matrix thead th{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left}.heat{image-rendering:pixelated;border:1px solid var(--line);max-width:100%}
.cards{display:flex;flex-wrap:wrap;gap:1rem}.card{width:11rem;font-size:.85rem;overflow-wrap:anywhere}.card img{display:block;height:96px;max-width:100%;object-fit:contain;margin-bottom:.3rem}
.card .name{color:var(--faint)}svg{max-width:100%;height:auto}.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:0 1.5rem}svg text{font:11px system-ui,sans-serif;fill:var(--ink)}
svg .grid{stroke:var(--line)}svg .axis{stroke:var(--faint)}summary{cursor:pointer}
";

pub(super) struct Page {
    html: String,
    title: String,
    has_headline: bool,
}

impl Page {
    pub(super) fn new(title: &str) -> Page {
        let title = escape(title);
        let html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n"
        );
        Page {
            html,
            title,
            has_headline: false,
        }
    }

    /// What the report says in one line, with the title below.
    pub(super) fn headline(&mut self, text: &str) {
        let _ = writeln!(
            self.html,
            "<h1>{}</h1><p class=\"sub\">{}</p>",
            escape(text),
            self.title
        );
        self.has_headline = true;
    }

    pub(super) fn section(&mut self, title: &str) {
        let _ = writeln!(self.html, "<h2>{}</h2>", escape(title));
    }

    pub(super) fn text(&mut self, text: &str) {
        let _ = writeln!(self.html, "<p>{}</p>", escape(text));
    }

    /// A list of phrases.
    pub(super) fn list(&mut self, items: &[String]) {
        self.html.push_str("<ol>");
        for item in items {
            let _ = write!(self.html, "<li>{}</li>", escape(item));
        }
        self.html.push_str("</ol>\n");
    }

    /// A picture that was drawn here, whose texts are escaped already.
    pub(super) fn svg(&mut self, svg: &str) {
        self.html.push_str(svg);
        self.html.push('\n');
    }

    /// Diagrams with their titles, beside each other where there is room.
    pub(super) fn charts<'t>(&mut self, charts: impl Iterator<Item = (&'t str, String)>) {
        let mut charts = charts.peekable();
        if charts.peek().is_none() {
            return;
        }
        self.html.push_str("<div class=\"charts\">");
        for (title, svg) in charts {
            let _ = write!(self.html, "<div><h2>{}</h2>{svg}</div>", escape(title));
        }
        self.html.push_str("</div>\n");
    }

    /// Content that is closed until the reader opens it, up to [`end_fold`](Page::end_fold).
    pub(super) fn fold(&mut self, summary: &str) {
        let _ = write!(self.html, "<details><summary>{}</summary>", escape(summary));
    }

    pub(super) fn end_fold(&mut self) {
        self.html.push_str("</details>\n");
    }

    /// A table of figures; without heads, of texts.
    pub(super) fn table(&mut self, heads: &[&str]) -> Table<'_> {
        if heads.is_empty() {
            self.html.push_str("<table class=\"plain\">");
        } else {
            self.html.push_str("<div class=\"wide\"><table><thead><tr>");
            for head in heads {
                let _ = write!(self.html, "<th>{}</th>", escape(head));
            }
            self.html.push_str("</tr></thead>");
        }
        Table {
            html: &mut self.html,
            has_heads: !heads.is_empty(),
        }
    }

    /// A coloured table of counts: heads, and rows of counts with how strongly each is coloured, from 0 to 1.
    pub(super) fn matrix(&mut self, heads: &[String], rows: &[Vec<(usize, f64)>]) {
        self.html
            .push_str("<div class=\"wide\"><table class=\"matrix\"><thead><tr><td></td>");
        for head in heads {
            let _ = write!(self.html, "<th>{}</th>", escape(head));
        }
        self.html.push_str("</tr></thead>");
        for (head, row) in heads.iter().zip(rows) {
            let _ = write!(self.html, "<tr><th>{}</th>", escape(head));
            for (count, strength) in row {
                let _ = match count {
                    0 => write!(self.html, "<td></td>"),
                    _ => write!(
                        self.html,
                        "<td style=\"background:rgba(70,130,220,{strength:.2})\">{count}</td>"
                    ),
                };
            }
            self.html.push_str("</tr>");
        }
        self.html.push_str("</table></div>\n");
    }

    /// A picture with square pixels, `side` pixels wide on the page.
    pub(super) fn heat(&mut self, thumbnail: &Thumbnail, side: usize, alt: &str) {
        let (uri, alt) = (thumbnail.uri(), escape(alt));
        let _ = writeln!(
            self.html,
            "<img class=\"heat\" width=\"{side}\" src=\"{uri}\" alt=\"{alt}\">"
        );
    }

    pub(super) fn cards(&mut self, cards: &[Card]) {
        self.html.push_str("<div class=\"cards\">");
        for card in cards {
            self.html.push_str("<div class=\"card\">");
            if let Some(picture) = &card.picture {
                let _ = write!(self.html, "<img src=\"{}\" alt=\"\">", picture.uri());
            }
            let _ = write!(
                self.html,
                "<div>{}</div><div class=\"name\">{}</div></div>",
                escape(&card.text),
                escape(&card.name)
            );
        }
        self.html.push_str("</div>\n");
    }

    pub(super) fn finish(mut self) -> String {
        if !self.has_headline {
            // A run without any row to judge still has a title to be known by.
            let title = format!("<h1>{}</h1>\n", self.title);
            let at = self
                .html
                .find("</style>\n")
                .map_or(0, |at| at + "</style>\n".len());
            self.html.insert_str(at, &title);
        }
        self.html.push_str("</html>\n");
        self.html
    }
}

/// One row that is shown with its picture.
pub(super) struct Card {
    pub(super) picture: Option<Thumbnail>,
    pub(super) text: String,
    pub(super) name: String,
}

/// Closed when it is dropped.
pub(super) struct Table<'p> {
    html: &'p mut String,
    has_heads: bool,
}

impl Table<'_> {
    pub(super) fn row(&mut self, cells: &[impl AsRef<str>]) {
        self.html.push_str("<tr>");
        for cell in cells {
            let _ = write!(self.html, "<td>{}</td>", escape(cell.as_ref()));
        }
        self.html.push_str("</tr>\n");
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        self.html.push_str(if self.has_heads {
            "</table></div>\n"
        } else {
            "</table>\n"
        });
    }
}

/// Text as HTML, in an element or in a quoted attribute. What a terminal or a page would hide is shown as a sign.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
