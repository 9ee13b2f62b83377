//! Which documents are held out: decided by a hash of the path alone, so that adding or removing other files, or
//! reading them in another order, never moves a document from one side to the other.

use crate::corpus::Document;
use crate::stable_hash::hash_64;

/// Whether the document named `id` belongs to the held-out set, of which `fraction` (0 to 1) is the expected share.
///
/// A larger fraction holds out everything that a smaller one does.
pub fn held_out(id: &str, fraction: f64) -> bool {
    assert!((0.0..=1.0).contains(&fraction), "held-out fraction must lie in 0..=1, got {fraction}");
    // 53 bits fill the mantissa, so the quotient is exact and 1.0 holds out everything.
    ((hash_64(id.as_bytes()) >> 11) as f64) / ((1_u64 << 53) as f64) < fraction
}

/// Cuts a document at line ends into sections of at least `section_bytes` (the last may be smaller), named `id@N` from 1.
///
/// A corpus of a few large files has nothing to hold out but whole files; sections can be held out one by one.
pub fn sections(document: Document, section_bytes: usize) -> Vec<Document> {
    let Document { id, text } = document;
    if text.len() <= section_bytes {
        return vec![Document { id, text }];
    }
    let mut sections: Vec<String> = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if sections.last().is_some_and(|section| section.len() >= section_bytes.max(1)) {
            sections.push(String::new());
        }
        sections.last_mut().expect("starts with one").push_str(line);
    }
    let named = |(i, text)| Document { id: format!("{id}@{}", i + 1), text };
    sections.into_iter().enumerate().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_lose_nothing() {
        let text: String = (0..100).map(|i| format!("line {i}\n")).collect();
        let check = |section_bytes, expected: usize| {
            let document = Document { id: "a".into(), text: text.clone() };
            let sections = sections(document, section_bytes);
            assert_eq!(sections.iter().map(|s| s.text.as_str()).collect::<String>(), text);
            assert_eq!(sections.len(), expected, "{section_bytes}");
            let (_, before) = sections.split_last().unwrap();
            assert!(before.iter().all(|s| s.text.len() >= section_bytes && s.text.ends_with('\n')));
        };
        // 100 lines of 7 or 8 bytes: 790 in all.
        check(790, 1);
        check(789, 1);
        check(400, 2);
        check(8, 95);
        check(0, 100);
    }

    fn share(fraction: f64) -> f64 {
        let paths = (0..20_000).map(|i| format!("serde-1.0.{}/src/de/file{i}.rs", i % 7));
        paths.filter(|path| held_out(path, fraction)).count() as f64 / 20_000.0
    }

    #[test]
    fn the_share_is_the_fraction() {
        assert_eq!(share(0.0), 0.0);
        assert_eq!(share(1.0), 1.0);
        for fraction in [0.01, 0.05, 0.5] {
            // Three standard deviations of a binomial with 20,000 draws.
            let tolerance = 3.0 * (fraction * (1.0 - fraction) / 20_000.0_f64).sqrt();
            assert!((share(fraction) - fraction).abs() < tolerance, "{fraction}: {}", share(fraction));
        }
    }

    #[test]
    fn larger_fractions_contain_smaller_ones() {
        let paths = (0..2_000).map(|i| format!("file{i}.md"));
        assert!(paths.filter(|p| held_out(p, 0.05)).all(|p| held_out(&p, 0.1)));
    }

    #[test]
    fn the_choice_is_the_same_forever() {
        let chosen: Vec<_> = (0..60).filter(|i| held_out(&format!("src/file{i}.rs"), 0.1)).collect();
        assert_eq!(chosen, GOLDEN);
    }

    // A change of these numbers moves held-out text into every existing run's training set.
    const GOLDEN: [i32; 7] = [6, 20, 46, 47, 49, 50, 53];
}
