//! Groups of parameters, found in a graph by patterns over their names.

use std::path::Path;

use surgery::Pattern;

use super::config::{TuneConfig, Unfreeze};
use crate::error::Error;
use crate::onnx::{Parameter, nearest};

/// Parameters that begin to train together, at one learning rate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    /// Its patterns.
    pub(crate) name: String,
    /// Indices of its parameters, in the graph's order.
    pub(crate) members: Vec<usize>,
    /// Before the schedule.
    pub(crate) lr: f64,
}

/// Patterns, and behind the word `except` others.
struct Patterns {
    text: String,
    wanted: Vec<Pattern>,
    except: Vec<Pattern>,
}

impl Patterns {
    fn parse(words: &[String]) -> Result<Patterns, Error> {
        let mut patterns = Patterns {
            text: words.join(" "),
            wanted: Vec::new(),
            except: Vec::new(),
        };
        let mut is_except = false;
        for word in words {
            if word == "except" {
                is_except = true;
                continue;
            }
            let pattern =
                Pattern::parse(word).map_err(|error| Error::Usage(format!("`{word}`: {}", error.reason)))?;
            match is_except {
                true => patterns.except.push(pattern),
                false => patterns.wanted.push(pattern),
            }
        }
        if patterns.wanted.is_empty() {
            return Err(Error::Usage(format!("`{}` names no parameter", patterns.text)));
        }
        Ok(patterns)
    }

    fn matches(&self, name: &str) -> bool {
        let is_in = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name));
        is_in(&self.wanted) && !is_in(&self.except)
    }

    /// Every pattern has to match something.
    fn check(&self, path: &Path, parameters: &[Parameter]) -> Result<(), Error> {
        for pattern in self.wanted.iter().chain(&self.except) {
            if !parameters
                .iter()
                .any(|parameter| pattern.matches(&parameter.name))
            {
                return Err(Error::NoParameter {
                    path: path.to_owned(),
                    pattern: pattern.as_str().to_owned(),
                    suggestions: near(pattern.as_str(), parameters),
                });
            }
        }
        Ok(())
    }
}

/// What a pattern may have meant: names, or where it ends in a star modules, that are near to what stands in front of its
/// first star.
fn near(pattern: &str, parameters: &[Parameter]) -> Vec<String> {
    let literal = pattern
        .split(['*', '{', '/'])
        .next()
        .unwrap_or_default()
        .trim_end_matches('.');
    let n_segments = literal.split('.').count();
    let prefix = |name: &str| {
        let end = name.match_indices('.').nth(n_segments - 1).map(|(at, _)| at);
        end.filter(|_| literal.len() < pattern.len())
            .map_or_else(|| name.to_owned(), |end| format!("{}.**", &name[..end]))
    };
    let names: std::collections::BTreeSet<String> = parameters.iter().map(|at| prefix(&at.name)).collect();
    nearest(literal, names.iter().map(String::as_str), 5)
}

/// The indices of the parameters that patterns of `words` match.
///
/// # Errors
/// [`Error::Usage`] for a pattern that is none; [`Error::NoParameter`] for one that matches nothing.
pub(super) fn matched(path: &Path, parameters: &[Parameter], words: &[String]) -> Result<Vec<usize>, Error> {
    if words.is_empty() {
        return Ok(Vec::new());
    }
    let patterns = Patterns::parse(words)?;
    patterns.check(path, parameters)?;
    let found = parameters.iter().enumerate();
    Ok(found
        .filter(|(_, parameter)| patterns.matches(&parameter.name))
        .map(|(at, _)| at)
        .collect())
}

/// The groups of a fine-tuning, the top's first. The classifier, whose module is `classifier`, always trains: where no pattern
/// names it, it is a group of its own at the top, or with a single group part of that. A parameter that several groups
/// match is in the first of them.
///
/// # Errors
/// [`Error::NoParameter`] for a pattern that matches nothing; [`Error::Usage`] for a group that is left without parameters,
/// for a parameter that is to train and is in no group, and for another number of rates than of groups.
pub(crate) fn resolve(
    path: &Path,
    parameters: &[Parameter],
    classifier: &str,
    config: &TuneConfig,
) -> Result<Vec<Group>, Error> {
    let mut trains = matched(path, parameters, &config.train)?;
    let is_head = |at: usize| {
        let name = parameters[at].name.strip_prefix(classifier);
        name.is_some_and(|rest| rest.starts_with('.'))
    };
    let heads: Vec<usize> = (0..parameters.len()).filter(|&at| is_head(at)).collect();
    let mut groups: Vec<Group> = Vec::new();
    let group = |name: String, members: Vec<usize>| Group {
        name,
        members,
        lr: 0.0,
    };
    if config.groups.is_empty() {
        trains.extend(&heads);
        trains.sort_unstable();
        trains.dedup();
        groups.push(group(config.train.join(" "), trains));
    } else {
        let mut taken = vec![false; parameters.len()];
        for words in &config.groups {
            let mut members = matched(path, parameters, words)?;
            members.retain(|&at| !std::mem::replace(&mut taken[at], true));
            let name = words.join(" ");
            if members.is_empty() {
                let text = format!("all parameters of the group `{name}` are in groups before it");
                return Err(Error::Usage(text));
            }
            groups.push(group(name, members));
        }
        if let Some(&left) = trains.iter().find(|&&at| !taken[at] && !is_head(at)) {
            let text = format!("`{}` is to be trained and is in no group", parameters[left].name);
            return Err(Error::Usage(text));
        }
        if heads.iter().all(|&at| !taken[at]) {
            groups.insert(0, group(format!("{classifier}.**"), heads));
        }
    }
    // Running statistics are moved by their normalisation and not trained.
    for group in &mut groups {
        group.members.retain(|&at| !parameters[at].is_buffer);
        if group.members.is_empty() {
            let text = format!(
                "`{}` matches running statistics alone, which are not trained",
                group.name
            );
            return Err(Error::Usage(text));
        }
    }
    if let super::Rates::Given(rates) = &config.rates
        && rates.len() != groups.len()
    {
        let names: Vec<String> = groups.iter().map(|group| format!("`{}`", group.name)).collect();
        return Err(Error::Usage(format!(
            "{} learning rates for {} groups: {}",
            rates.len(),
            groups.len(),
            names.join(", ")
        )));
    }
    if config.unfreeze == Unfreeze::EachEpoch && groups.len() > config.trainer.epochs {
        return Err(Error::Usage(format!(
            "{} groups are not unfrozen one with each of {} epochs",
            groups.len(),
            config.trainer.epochs
        )));
    }
    for (at, group) in groups.iter_mut().enumerate() {
        group.lr = config.lr(at);
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::super::config::Rates;
    use super::super::config::tests::config;
    use super::*;

    fn parameters() -> Vec<Parameter> {
        let names = [
            "conv1.weight",
            "bn1.weight",
            "bn1.running_mean",
            "layer1.0.conv.weight",
            "layer2.0.conv.weight",
            "fc.weight",
            "fc.bias",
        ];
        let parameter = |(node_idx, name): (usize, &&str)| Parameter {
            name: (*name).to_owned(),
            initializer: (*name).to_owned(),
            shape: vec![1],
            is_transposed: false,
            is_buffer: name.ends_with("running_mean"),
            node_idx,
        };
        names.iter().enumerate().map(parameter).collect()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn resolved(train: &str, groups: &[&str], change: impl Fn(&mut TuneConfig)) -> Result<Vec<Group>, Error> {
        let mut config = config();
        config.train = words(train);
        config.groups = groups.iter().map(|group| words(group)).collect();
        change(&mut config);
        resolve(Path::new("m.onnx"), &parameters(), "fc", &config)
    }

    fn members(groups: &[Group]) -> Vec<Vec<usize>> {
        groups.iter().map(|group| group.members.clone()).collect()
    }

    #[test]
    fn the_classifier_trains_whether_it_is_named_or_not() {
        let all = |train, groups: &[&str]| members(&resolved(train, groups, |_| {}).unwrap());
        assert_eq!(all("layer2.**", &[]), [[4, 5, 6]]);
        assert_eq!(all("layer2.** fc.**", &[]), [[4, 5, 6]]);
        assert_eq!(
            all("", &["layer2.**", "layer1.**"]),
            [vec![5, 6], vec![4], vec![3]]
        );
        assert_eq!(
            all("", &["fc.** layer2.**", "layer1.**"]),
            [vec![4, 5, 6], vec![3]]
        );
    }

    #[test]
    fn patterns_have_exceptions_and_the_first_group_takes_what_several_match() {
        let all = |train, groups: &[&str]| members(&resolved(train, groups, |_| {}).unwrap());
        assert_eq!(all("** except layer1.** bn1.**", &[]), [[0, 4, 5, 6]]);
        assert_eq!(
            all("", &["fc.**", "layer2.**", "**"]),
            [vec![5, 6], vec![4], vec![0, 1, 3]]
        );
    }

    #[test]
    fn groups_have_rates_of_their_own() {
        let rates = |rates: Rates| {
            let groups = resolved("", &["fc.**", "layer2.**", "layer1.**"], |config| {
                config.trainer.lr = 0.1;
                config.rates = rates.clone();
            });
            groups.map(|groups| groups.iter().map(|group| group.lr).collect::<Vec<f64>>())
        };
        assert_eq!(
            rates(Rates::Divided(10.0)).unwrap(),
            [0.1, 0.1 / 10.0, 0.1 / 100.0]
        );
        assert_eq!(rates(Rates::Given(vec![0.3, 0.2, 0.0])).unwrap(), [0.3, 0.2, 0.0]);
        let text = rates(Rates::Given(vec![0.3])).unwrap_err().to_string();
        assert!(text.contains("1 learning rates for 3 groups"), "{text}");
    }

    #[test]
    fn what_matches_nothing_is_said_with_the_nearest_names() {
        let error = resolved("layer9.**", &[], |_| {}).unwrap_err();
        let Error::NoParameter {
            pattern, suggestions, ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(pattern, "layer9.**");
        assert_eq!(suggestions[..2], ["layer1.**", "layer2.**"]);
        let message = |train, groups: &[&str]| resolved(train, groups, |_| {}).unwrap_err().to_string();
        assert!(message("{", &[]).contains("`{`"));
        assert!(
            message("conv1.** fc.**", &["fc.**", "layer2.**"]).contains("`conv1.weight` is to be trained")
        );
        assert!(message("", &["fc.**", "fc.**"]).contains("are in groups before it"));
        assert!(message("", &["fc.**", "bn1.running_mean"]).contains("running statistics alone"));
    }
}
