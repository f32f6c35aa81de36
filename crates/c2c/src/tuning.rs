//! How hard the uploads work: the options, and what they mean to the uplink.

use c2c_uplink::{Congestion, Transfers, UplinkBuilder};
use clap::{Args, ValueEnum};

const HEADING: &str = "Transfer options";

/// How hard the uploads work.
#[derive(Args, Clone, Debug)]
pub(crate) struct Tuning {
    /// Chunks to send at the same time: a number, or `auto` for as many as the link rewards
    #[arg(
        long,
        global = true,
        env = "C2C_TRANSFERS",
        value_name = "N",
        default_value = "auto",
        value_parser = transfers,
        help_heading = HEADING
    )]
    pub(crate) transfers: Transfers,

    /// Whether the MD5 of each chunk is compared with what the storage says it received
    #[arg(
        long,
        global = true,
        env = "C2C_VERIFY",
        value_enum,
        default_value = "on",
        help_heading = HEADING
    )]
    pub(crate) verify: Switch,

    /// Put the SHA-256 of each file into its receipt; the file is read a second time for it
    #[arg(
        long,
        global = true,
        env = "C2C_RECEIPT_SHA256",
        value_enum,
        default_value = "off",
        help_heading = HEADING
    )]
    pub(crate) receipt_sha256: Switch,

    /// At most so many bytes per second in total, e.g. 500k or 2M (thousands and millions)
    #[arg(
        long,
        global = true,
        env = "C2C_LIMIT_RATE",
        value_name = "RATE",
        value_parser = rate,
        help_heading = HEADING
    )]
    pub(crate) limit_rate: Option<u64>,

    /// Step back when others need the line, e.g. a call or a live picture
    #[arg(
        long,
        global = true,
        env = "C2C_POLITE",
        value_enum,
        default_value = "off",
        help_heading = HEADING
    )]
    pub(crate) polite: Switch,

    /// Send through this network interface only, e.g. wwan0 (Linux)
    #[arg(
        long,
        global = true,
        env = "C2C_INTERFACE",
        value_name = "NAME",
        help_heading = HEADING
    )]
    pub(crate) interface: Option<String>,

    /// Congestion control of the connections (Linux): `auto` is BBR where the kernel has it, `system` what the system
    /// uses, anything else a name in the kernel, such as `cubic`
    #[arg(
        long,
        global = true,
        env = "C2C_CONGESTION",
        value_name = "NAME",
        default_value = "auto",
        value_parser = congestion,
        help_heading = HEADING
    )]
    pub(crate) congestion: Congestion,

    /// Registrations per second at most, or `unlimited`; Frame.io allows five
    #[arg(
        long,
        global = true,
        env = "C2C_CREATE_RATE",
        value_name = "N",
        default_value = "5",
        value_parser = create_rate,
        help_heading = HEADING
    )]
    pub(crate) create_rate: CreateRate,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// Registrations per second at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CreateRate(Option<f64>);

impl Tuning {
    pub(crate) fn apply(&self, builder: UplinkBuilder) -> UplinkBuilder {
        let builder = match &self.interface {
            Some(interface) => builder.interface(interface),
            None => builder,
        };
        builder
            .limit_rate(self.limit_rate.unwrap_or(0))
            .polite(self.polite == Switch::On)
            .transfers(self.transfers)
            .verify(self.verify == Switch::On)
            .receipt_sha256(self.receipt_sha256 == Switch::On)
            .congestion(self.congestion.clone())
            .creates_per_second(self.create_rate.0)
    }
}

fn transfers(text: &str) -> Result<Transfers, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Transfers::Auto);
    }
    match text.parse() {
        Ok(number @ 1..=64) => Ok(Transfers::Fixed(number)),
        _ => Err("give a number from 1 to 64, or `auto`".to_owned()),
    }
}

fn congestion(text: &str) -> Result<Congestion, String> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Ok(Congestion::Auto),
        "system" => Ok(Congestion::System),
        name if (1..16).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) =>
        {
            Ok(Congestion::Named(name.to_owned()))
        }
        _ => Err("give `auto`, `system`, or a name such as `bbr` or `cubic`".to_owned()),
    }
}

fn rate(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let (number, unit) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1e3),
        Some(b'm') => (&lower[..lower.len() - 1], 1e6),
        Some(b'g') => (&lower[..lower.len() - 1], 1e9),
        _ => (lower.as_str(), 1.0),
    };
    match number.parse::<f64>().map(|number| number * unit) {
        Ok(rate) if (1e3..=1e12).contains(&rate) => Ok(rate as u64),
        _ => Err("give bytes per second, at least 1k, e.g. 500k or 2.5M".to_owned()),
    }
}

fn create_rate(text: &str) -> Result<CreateRate, String> {
    if text.eq_ignore_ascii_case("unlimited") {
        return Ok(CreateRate(None));
    }
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=10_000.0).contains(&rate) => Ok(CreateRate(Some(rate))),
        _ => Err("give a number from 0.01 to 10000, or `unlimited`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        assert_eq!(transfers("AUTO"), Ok(Transfers::Auto));
        assert_eq!(transfers("3"), Ok(Transfers::Fixed(3)));
        assert!(transfers("0").is_err() && transfers("65").is_err() && transfers("x").is_err());
        assert_eq!(
            congestion("Cubic"),
            Ok(Congestion::Named("cubic".to_owned()))
        );
        assert_eq!(congestion("auto"), Ok(Congestion::Auto));
        assert!(congestion("").is_err() && congestion("a b").is_err());
        assert!(congestion("a-name-that-is-too-long").is_err());
        assert_eq!(rate("500k"), Ok(500_000));
        assert_eq!(rate("2.5M"), Ok(2_500_000));
        assert_eq!(rate("12345"), Ok(12_345));
        assert!(rate("0").is_err() && rate("k").is_err() && rate("-1M").is_err());
        assert_eq!(create_rate("unlimited"), Ok(CreateRate(None)));
        assert_eq!(create_rate("2.5"), Ok(CreateRate(Some(2.5))));
        assert!(create_rate("0").is_err() && create_rate("inf").is_err());
    }
}
