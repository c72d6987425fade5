//! Settings as TOML, for `config.toml`.

use serde::Serialize;
use serde_json::Value;

/// JSON's string escapes are TOML's.
pub(super) fn string(text: &str) -> String {
    serde_json::to_string(text).expect("strings are JSON")
}

/// A plain value as JSON, which for strings, numbers and lists of them is TOML too.
pub(super) fn plain(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data is JSON")
}

/// Lines `key.of.a.value = …` of everything in `value`; what is null is left out, for TOML has no such thing.
pub(super) fn flatten(key: &str, value: &Value, text: &mut String) {
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (name, member) in members {
                flatten(&format!("{key}.{name}"), member, text);
            }
        }
        _ => text.push_str(&format!("{key} = {}\n", inline(value))),
    }
}

fn inline(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Array(items) => format!("[{}]", joined(items.iter().map(inline).collect())),
        Value::Object(members) => {
            let members = members.iter().filter(|(_, member)| !member.is_null());
            let members = members.map(|(name, member)| format!("{name} = {}", inline(member)));
            format!("{{ {} }}", joined(members.collect()))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_values_become_dotted_keys() {
        let value = serde_json::json!({
            "lr": 1e-3,
            "ema": null,
            "schedule": { "curve": { "kind": "step", "gamma": 0.1 }, "warmup": 0 },
            "heads": [{ "lr": 0.1, "best": null }, { "lr": 0.2 }],
        });
        let mut text = String::new();
        flatten("trainer", &value, &mut text);
        let expected = "trainer.lr = 0.001\ntrainer.schedule.curve.kind = \"step\"\ntrainer.schedule.curve.gamma = 0.1\n\
                        trainer.schedule.warmup = 0\ntrainer.heads = [{ lr = 0.1 }, { lr = 0.2 }]\n";
        assert_eq!(text, expected);
        assert_eq!(string("a \"b\"\\c"), r#""a \"b\"\\c""#);
    }
}
