//! Conditions of rules, in CEL (Common Expression Language).
//!
//! A condition is checked when it is compiled: it may only use variables, fields and functions that
//! exist, so that a rule with a misspelled one is refused rather than never applied. Loops can't be
//! nested and don't see the arguments but through their variable, and there are no regular
//! expressions: the time that a condition takes is in proportion to the arguments.

use std::sync::{Arc, LazyLock};

use cel::{
    Context, Env, Program, Value,
    common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators},
};

use super::facts::{Facts, VARIABLES};

/// The longest condition, in bytes.
const MAX_BYTES: usize = 4096;

/// Functions and methods of CEL's standard library, and the operators, which CEL has as functions.
const FUNCTIONS: [&str; 36] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "dyn",
    "type",
    "optional.of",
    "optional.none",
    "optional.ofNonZeroValue",
    "hasValue",
    "orValue",
    "value",
    "or",
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
];

/// Operators of optional values and of loops.
const OTHER_OPERATORS: [&str; 4] =
    [operators::OPT_INDEX, operators::OPT_SELECT, operators::IN, operators::NOT_STRICTLY_FALSE];

/// Names of types, which conditions may compare `type(x)` with.
const TYPES: [&str; 10] =
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Why a condition can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// It is too long.
    #[error("the condition is longer than {MAX_BYTES} bytes; split the rule")]
    TooLong,
    /// It is not CEL.
    #[error("the condition is not a CEL expression: {0}")]
    Syntax(String),
    /// It uses a variable that does not exist.
    #[error("there is no variable {0:?}; use principal, resource, annotations and args")]
    Variable(String),
    /// It uses a field that does not exist.
    #[error("{variable} has no field {field:?}; it has {known}")]
    Field {
        /// The variable.
        variable: &'static str,
        /// The field.
        field: String,
        /// The fields that exist.
        known: String,
    },
    /// It calls a function that does not exist.
    #[error("there is no function {0:?}; docs/access.md lists those that conditions may call")]
    Function(String),
    /// It has a loop inside a loop.
    #[error("a loop (all, exists, exists_one, map, filter) can't be inside another one")]
    NestedLoop,
    /// It uses the arguments inside a loop.
    #[error(
        "args can't be used inside a loop (all, exists, exists_one, map, filter), except as what it \
         runs over; use the loop's variable"
    )]
    ArgumentsInLoop,
    /// It makes a struct.
    #[error("conditions can't make values of the type {0:?}")]
    Struct(String),
    /// It is not true or false.
    #[error("the condition is always {0}; it must be true or false depending on its variables")]
    Constant(String),
}

/// A compiled condition.
#[derive(Debug)]
pub(super) struct Condition {
    program: Program,
    uses_arguments: bool,
}

impl Condition {
    /// Compiles and checks a condition.
    pub(super) fn compile(source: &str) -> Result<Self, ConditionError> {
        if source.len() > MAX_BYTES {
            return Err(ConditionError::TooLong);
        }

        let program = ENVIRONMENT
            .compile(source)
            .map_err(|errors| ConditionError::Syntax(errors.to_string().replace('\n', " ")))?;

        let uses_arguments = {
            let mut check = Check::default();
            check.visit(program.expression())?;
            if !check.uses_variables {
                return Err(ConditionError::Constant(source.trim().to_owned()));
            }
            check.uses_arguments
        };
        Ok(Self { program, uses_arguments })
    }

    /// Returns whether the condition depends on the arguments.
    pub(super) fn uses_arguments(&self) -> bool {
        self.uses_arguments
    }

    /// Evaluates the condition; the error says why that is not possible.
    pub(super) fn evaluate(&self, facts: &Facts<'_>) -> Result<bool, String> {
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        context.set_variable_resolver(facts);

        match self.program.execute(&context) {
            Ok(Value::Bool(value)) => Ok(value),
            Ok(other) => Err(format!("it is {}, not true or false", other.type_of())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A walk through a condition.
#[derive(Debug, Default)]
struct Check<'e> {
    /// The variables of the loops around.
    bound: Vec<&'e str>,
    in_loop: bool,
    uses_variables: bool,
    uses_arguments: bool,
}

impl<'e> Check<'e> {
    fn visit(&mut self, expression: &'e IdedExpr) -> Result<(), ConditionError> {
        match &expression.expr {
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.visit_name(name),
            Expr::Select(select) => {
                self.check_field(&select.operand.expr, &select.field)?;
                self.visit(&select.operand)
            }
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.visit(element)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::StructField(field) => self.visit(&field.value),
                EntryExpr::MapEntry(entry) => {
                    self.visit(&entry.key)?;
                    self.visit(&entry.value)
                }
            }),
            Expr::Struct(own) => Err(ConditionError::Struct(own.type_name.clone())),
            Expr::Call(call) => self.visit_call(call),
            Expr::Comprehension(own) => {
                if self.in_loop {
                    return Err(ConditionError::NestedLoop);
                }
                self.visit(&own.iter_range)?;

                let outer = self.bound.len();
                self.bound.extend([own.iter_var.as_str(), own.accu_var.as_str()]);
                self.bound.extend(own.iter_var2.as_deref());
                self.in_loop = true;
                for part in [&own.accu_init, &own.loop_cond, &own.loop_step, &own.result] {
                    self.visit(part)?;
                }
                self.in_loop = false;
                self.bound.truncate(outer);
                Ok(())
            }
        }
    }

    fn visit_name(&mut self, name: &str) -> Result<(), ConditionError> {
        if self.bound.contains(&name) || TYPES.contains(&name) {
            return Ok(());
        }
        if !VARIABLES.iter().any(|(known, _)| *known == name) {
            return Err(ConditionError::Variable(name.to_owned()));
        }
        if self.in_loop && name == "args" {
            return Err(ConditionError::ArgumentsInLoop);
        }
        self.uses_variables = true;
        self.uses_arguments |= name == "args";
        Ok(())
    }

    fn visit_call(&mut self, call: &'e cel::common::ast::CallExpr) -> Result<(), ConditionError> {
        let name = call.func_name.as_str();
        let target = call.target.as_deref().map(|target| &target.expr);

        // `optional.of(x)` comes as a call of `of` on the name `optional`.
        let qualified = match target {
            Some(Expr::Ident(namespace)) if namespace == "optional" => {
                Some(format!("optional.{name}"))
            }
            _ => None,
        };
        let full_name = qualified.as_deref().unwrap_or(name);
        if !FUNCTIONS.contains(&full_name) && !OTHER_OPERATORS.contains(&full_name) {
            return Err(ConditionError::Function(full_name.to_owned()));
        }

        if let [operand, index] = call.args.as_slice()
            && [operators::INDEX, operators::OPT_INDEX, operators::OPT_SELECT].contains(&name)
            && let Expr::Literal(LiteralValue::String(field)) = &index.expr
        {
            self.check_field(&operand.expr, field.inner())?;
        }

        if let (Some(target), None) = (call.target.as_deref(), &qualified) {
            self.visit(target)?;
        }
        call.args.iter().try_for_each(|argument| self.visit(argument))
    }

    /// Refuses a field that a variable does not have.
    fn check_field(&self, operand: &Expr, field: &str) -> Result<(), ConditionError> {
        let Expr::Ident(name) = operand else {
            return Ok(());
        };
        if self.bound.contains(&name.as_str()) {
            return Ok(());
        }

        match VARIABLES.iter().find(|(known, _)| known == name) {
            Some((variable, Some(fields))) if !fields.contains(&field) => {
                Err(ConditionError::Field {
                    variable,
                    field: field.to_owned(),
                    known: fields.join(", "),
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
