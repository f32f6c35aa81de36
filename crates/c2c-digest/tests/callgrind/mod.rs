//! Counts of instructions, for hot paths that must not grow: the same on a busy machine as on an idle one.
//!
//! A test calls [`per_unit`] with its own name and its work. The test's program then runs itself under callgrind, with that test
//! alone, for two sizes of the work; the difference is what the work itself takes, without the start of the program.
//! Callgrind knows AVX2 and no AVX-512, and reports no processor features that it does not know.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a part of tests")]

use std::process::Command;

const SIZE: &str = "C2C_COUNTED_SIZE";

/// How many instructions the work takes for each unit (byte, call); `work` is given the number of units, `units` or twice as many.
///
/// `None` where it cannot be counted, after a word about why; and in the counted program itself, which has only to do the work.
pub(crate) fn per_unit(test: &str, units: usize, work: impl FnOnce(usize)) -> Option<f64> {
    if let Ok(units) = std::env::var(SIZE) {
        work(units.parse().unwrap());
        return None;
    }
    match Command::new("valgrind").arg("--version").output() {
        Ok(output) if output.status.success() => {}
        _ => {
            println!("SKIPPED {test}: valgrind is not installed");
            return None;
        }
    }
    let (once, twice) = (count(test, units), count(test, 2 * units));
    let each = twice.checked_sub(once).unwrap() as f64 / units as f64;
    println!("{test}: {each:.2} instructions for each unit");
    Some(each)
}

fn count(test: &str, units: usize) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--test-threads=1"])
        .env(SIZE, units.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "under callgrind: {said}");
    said.lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, number)| number.trim().parse().ok())
        .unwrap_or_else(|| panic!("callgrind counted nothing: {said}"))
}
