//! The part of PromQL that the query of a trigger needs: arithmetic over instant vectors, and
//! aggregations over a whole vector or by instance. Anything else is refused.

use std::collections::BTreeMap;

/// The metrics of all scraped processes, by instance.
pub type Scrapes = BTreeMap<String, String>;

/// Values by instance and by the labels that the process itself has set, or one number.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Scalar(f64),
    Vector(BTreeMap<(String, String), f64>),
}

/// The result of a query; `None` if it is empty. Returns an error if the query is not supported, or
/// if the result has several elements.
pub fn evaluate(query: &str, scrapes: &Scrapes) -> Result<Option<f64>, String> {
    let mut parser = Parser { rest: query.trim_start(), scrapes };
    let value = parser.sum()?;
    if !parser.rest.is_empty() {
        return Err(format!("not understood: {}", parser.rest));
    }
    match value {
        Value::Scalar(number) => Ok(Some(number)),
        Value::Vector(vector) if vector.len() > 1 => Err("several elements".to_owned()),
        Value::Vector(vector) => Ok(vector.into_values().next()),
    }
}

struct Parser<'a> {
    rest: &'a str,
    scrapes: &'a Scrapes,
}

impl<'a> Parser<'a> {
    /// Consumes `token` if it comes next.
    fn takes(&mut self, token: &str) -> bool {
        let after = self.rest.strip_prefix(token);
        self.rest = after.unwrap_or(self.rest).trim_start();
        after.is_some()
    }

    fn demand(&mut self, token: &str) -> Result<(), String> {
        if self.takes(token) { Ok(()) } else { Err(format!("{token} expected at: {}", self.rest)) }
    }

    fn word(&mut self, is_part: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|char| !is_part(char)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        word
    }

    fn sum(&mut self) -> Result<Value, String> {
        let mut left = self.product()?;
        loop {
            left = if self.takes("+") {
                combined(left, self.product()?, |a, b| a + b)
            } else if self.takes("-") {
                combined(left, self.product()?, |a, b| a - b)
            } else {
                return Ok(left);
            };
        }
    }

    fn product(&mut self) -> Result<Value, String> {
        let mut left = self.atom()?;
        while self.takes("*") {
            left = combined(left, self.atom()?, |a, b| a * b);
        }
        Ok(left)
    }

    fn atom(&mut self) -> Result<Value, String> {
        if self.takes("(") {
            let value = self.sum()?;
            return self.demand(")").map(|()| value);
        }
        if self.rest.starts_with(|char: char| char.is_ascii_digit()) {
            let number = self.word(|char| char.is_ascii_digit() || char == '.');
            return number.parse().map(Value::Scalar).map_err(|_| format!("no number: {number}"));
        }

        match self.word(|char| char.is_ascii_alphanumeric() || char == '_') {
            "" => Err(format!("not understood: {}", self.rest)),
            "sum" => self.aggregation(|a, b| a + b),
            "max" => self.aggregation(f64::max),
            name => self.selector(name),
        }
    }

    fn aggregation(&mut self, fold: impl Fn(f64, f64) -> f64) -> Result<Value, String> {
        let by_instance = self.takes("by");
        if by_instance {
            ["(", "instance", ")"].iter().try_for_each(|token| self.demand(token))?;
        }
        self.demand("(")?;
        let Value::Vector(vector) = self.sum()? else {
            return Err("an aggregation of a number".to_owned());
        };
        self.demand(")")?;
        let mut groups = BTreeMap::new();
        for ((instance, _), value) in vector {
            let group = (if by_instance { instance } else { String::new() }, String::new());
            groups
                .entry(group)
                .and_modify(|so_far| *so_far = fold(*so_far, value))
                .or_insert(value);
        }
        Ok(Value::Vector(groups))
    }

    fn selector(&mut self, name: &str) -> Result<Value, String> {
        let mut matchers = Vec::new();
        if self.takes("{") {
            while !self.takes("}") {
                let label = self.word(|char| char.is_ascii_alphanumeric() || char == '_');
                let several = self.takes("=~");
                if !several {
                    self.demand("=")?;
                }
                let quoted = self.rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
                let (value, rest) =
                    quoted.ok_or_else(|| format!("a matcher of {label}: {}", self.rest))?;
                if several
                    && !value
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"_|-".contains(&byte))
                {
                    return Err(format!("not understood: {label}=~{value}"));
                }
                let values: Vec<_> = if several { value.split('|').collect() } else { vec![value] };
                matchers.push((label, values));
                self.rest = rest.trim_start();
                self.takes(",");
            }
        }

        // Ignore labels that a scrape adds, such as the namespace: the process doesn't report them,
        // and all processes belong to one fleet.
        let matches = |labels: &str| {
            matchers.iter().all(|(label, values)| {
                let of_label =
                    labels.split(',').find_map(|pair| pair.strip_prefix(label)?.strip_prefix('='));
                of_label.is_none_or(|own| values.contains(&own.trim_matches('"')))
            })
        };

        let mut vector = BTreeMap::new();
        for (instance, scrape) in self.scrapes {
            for (labels, value) in scrape.lines().filter_map(|line| sample(line, name)) {
                if matches(labels) {
                    vector.insert((instance.clone(), labels.to_owned()), value);
                }
            }
        }

        Ok(Value::Vector(vector))
    }
}

/// The labels and value of a line, if it is a sample of this metric.
fn sample<'a>(line: &'a str, name: &str) -> Option<(&'a str, f64)> {
    let rest = line.strip_prefix(name)?;
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.split_once('}')?,
        None => ("", rest.strip_prefix(' ')?),
    };
    Some((labels, value.trim().parse().ok()?))
}

/// Combines two values element by element; elements on only one side are left out.
fn combined(left: Value, right: Value, operation: impl Fn(f64, f64) -> f64) -> Value {
    let each = |vector: BTreeMap<_, _>, operation: &dyn Fn(f64) -> f64| {
        Value::Vector(vector.into_iter().map(|(key, value)| (key, operation(value))).collect())
    };
    match (left, right) {
        (Value::Scalar(left), Value::Scalar(right)) => Value::Scalar(operation(left, right)),
        (Value::Scalar(left), Value::Vector(right)) => each(right, &|right| operation(left, right)),
        (Value::Vector(left), Value::Scalar(right)) => each(left, &|left| operation(left, right)),
        (Value::Vector(left), Value::Vector(right)) => {
            let both = left.into_iter().filter_map(|(key, value)| {
                let other = right.get(&key)?;
                Some((key, operation(value, *other)))
            });
            Value::Vector(both.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_mean_the_same_as_in_prometheus() {
        let scrapes: Scrapes = [
            ("w1", "# HELP buffered x\nbuffered 10\nparked 4\nopen 0\nbuffered_bytes 77\n"),
            ("w2", "buffered 20\nparked 5\nopen 1\n"),
            ("s1", "jobs{state=\"queued\"} 3\njobs{state=\"running\"} 4\njobs{state=\"succeeded\"} 500\n"),
            ("s2", "jobs{state=\"queued\"} 3\njobs{state=\"running\"} 5\n"),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into();
        let check = |query: &str, expected: Result<Option<f64>, &str>| match expected {
            Ok(expected) => assert_eq!(evaluate(query, &scrapes), Ok(expected), "{query}"),
            Err(why) => {
                let result = evaluate(query, &scrapes);
                assert!(
                    result.as_ref().is_err_and(|error| error.contains(why)),
                    "{query}: {result:?}"
                );
            }
        };

        check("sum(buffered)", Ok(Some(30.0)));
        check("max( buffered{namespace=\"mcp-fleet\"} )", Ok(Some(20.0)));
        check("sum((buffered - parked) * (1 - open))", Ok(Some(6.0)));
        check("sum(buffered) - sum(parked) * 2 + 1", Ok(Some(13.0)));
        check("max(sum by (instance) (jobs{state=~\"queued|running\"}))", Ok(Some(8.0)));
        check("sum(jobs{state=\"queued\", namespace=\"x\"})", Ok(Some(6.0)));
        check("sum(buffered - nothing)", Ok(None));
        check("2 * 3", Ok(Some(6.0)));
        check("buffered", Err("several elements"));
        check("rate(buffered[5m])", Err("not understood"));
        check("sum(jobs{state=~\"q.*\"})", Err("state=~q.*"));
        check("sum(buffered", Err(") expected"));
        check("sum by (state) (jobs)", Err("instance expected"));
    }
}
