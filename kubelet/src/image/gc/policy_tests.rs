//! Tables for thresholds, ages and order; properties for what must never happen.

use super::*;
use proptest::prelude::*;

const MINUTE: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;

fn image(id: &str, size: u64) -> Image {
    Image { id: id.to_owned(), size, repo_tags: vec![format!("r.test/{id}:1")], ..Image::default() }
}

fn config(high_percent: u8, low_percent: u8) -> GcConfig {
    GcConfig { high_percent, low_percent, ..GcConfig::default() }
}

fn ids(candidates: &[Candidate]) -> Vec<&str> {
    candidates.iter().map(|c| c.id.as_str()).collect()
}

#[test]
fn thresholds_decide_when_and_how_much() {
    for (capacity, available, high, low, want) in [
        (100, 50, 85, 80, Ok(None)),
        (100, 16, 85, 80, Ok(None)),
        (100, 15, 85, 80, Ok(Some(5))),
        (1000, 0, 85, 80, Ok(Some(200))),
        // Rounded up, as upstream has it: 84.1 % counts as 85.
        (1000, 159, 85, 80, Ok(Some(41))),
        (100, 0, 100, 80, Ok(None)),
        (100, 100, 0, 0, Ok(Some(0))),
        (100, 200, 85, 80, Ok(None)),
        (u64::MAX, 0, 85, 80, Ok(Some(u64::MAX / 5))),
        (0, 0, 85, 80, Err(NoCapacity)),
    ] {
        let usage = Usage { capacity, available };
        assert_eq!(usage.to_free(&config(high, low)), want, "{usage:?} {high} {low}");
    }
    assert_eq!(NoCapacity.to_string(), "invalid capacity 0 on image filesystem");
    assert!(!config(100, 80).is_on() && config(99, 80).is_on());
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_used_or_pinned_never() {
    let now = Instant::now();
    let mut records = Records::new(now);
    let pinned = Image { pinned: true, ..image("pinned", 1) };
    let mut images = vec![pinned, image("old", 1), image("used", 1), image("was-used", 1), image("busy", 1)];
    let used = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<HashSet<_>>();
    records.look(&images, &used(&["used", "r.test/was-used:1"]), now);
    images.push(image("new", 1));
    let later = now + MINUTE;
    records.touch("busy", later);
    let found = records.look(&images, &used(&["used"]), later + MINUTE);
    assert_eq!(ids(&found), ["old", "new", "was-used", "busy"]);
    // What goes away is forgotten: when it comes back it is new.
    records.look(&images[..1], &used(&[]), later + MINUTE);
    assert_eq!(records.by_id.len(), 1);
}

#[test]
fn young_images_stay_and_those_from_before_the_agent_are_old() {
    let now = Instant::now();
    let mut records = Records::new(now);
    let before = [image("before", 10)];
    records.look(&before, &HashSet::new(), now);
    let both = [image("before", 10), image("young", 10)];
    let found = records.look(&both, &HashSet::new(), now + MINUTE);
    let eligible = |found: &[Candidate], at| {
        let mut freeing = Freeing::new(found.to_vec(), 100, &config(85, 80), at);
        std::iter::from_fn(|| freeing.next()).map(|c| c.id).collect::<Vec<_>>()
    };
    assert_eq!(eligible(&found, now + MINUTE), ["before"]);
    assert_eq!(eligible(&found, now + 3 * MINUTE), ["before", "young"]);
}

#[test]
fn what_is_unused_for_too_long_goes_once_the_agent_has_run_for_so_long() {
    let now = Instant::now();
    let mut records = Records::new(now);
    let config = GcConfig { max_age: 60 * MINUTE, ..config(85, 80) };
    let images = [image("never", 1), image("used", 1)];
    let used = HashSet::from(["used".to_owned()]);
    let old_at = |records: &mut Records, images: &[Image], used: &HashSet<String>, after: Duration| {
        let mut found = records.look(images, used, now + after);
        let old = records.take_old(&mut found, &config, now + after);
        (ids(&old).join(" "), found.len())
    };
    assert_eq!(old_at(&mut records, &images, &used, 60 * MINUTE), (String::new(), 1));
    assert_eq!(old_at(&mut records, &images, &used, 61 * MINUTE), ("never".into(), 0));
    let images = [image("used", 1), image("fresh", 1)];
    assert_eq!(old_at(&mut records, &images, &HashSet::new(), 62 * MINUTE), (String::new(), 2));
    assert_eq!(old_at(&mut records, &images, &HashSet::new(), 122 * MINUTE), ("used".into(), 1));
    assert_eq!(old_at(&mut records, &images, &HashSet::new(), 123 * MINUTE), ("fresh used".into(), 0));
    let off = GcConfig { max_age: Duration::ZERO, ..config };
    let mut found = records.look(&images, &HashSet::new(), now + 999 * MINUTE);
    assert!(records.take_old(&mut found, &off, now + 999 * MINUTE).is_empty());
}

#[test]
fn a_full_disk_is_told_in_upstreams_words() {
    assert!(not_enough(88, 114 * GIB + 700 * (1 << 20), 1_911_349).starts_with(
        "Insufficient free disk space on the node's image filesystem (88% of 114.7 GiB used). Failed to free sufficient \
         space by deleting unused images (freed 1911349 bytes)."
    ));
    assert_eq!(
        (human(512), human(2048), human(3 << 40)),
        ("512 B".into(), "2.0 KiB".into(), "3.0 TiB".into())
    );
}

proptest! {
    /// Whatever is here and used: nothing used, pinned or young ever goes; enough goes if enough may; and not one more
    /// than it takes.
    #[test]
    fn nothing_that_is_kept_goes_and_enough_does_if_it_can(
        images in proptest::collection::vec((1u64..1000, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()), 0..30),
        wanted in 0u64..8000,
    ) {
        let now = Instant::now();
        let mut records = Records::new(now);
        let config = config(85, 80);
        let mut here: Vec<(Image, bool, bool, bool)> = Vec::new();
        for (i, (size, pinned, used, young, fails)) in images.into_iter().enumerate() {
            here.push((Image { pinned, ..image(&i.to_string(), size) }, used, young, fails));
        }
        let list = |young: bool| -> Vec<Image> {
            here.iter().filter(|(_, _, y, _)| young || !y).map(|(i, ..)| i.clone()).collect()
        };
        records.look(&list(false), &HashSet::new(), now);
        let later = now + MINUTE;
        let used = here.iter().filter(|(_, used, ..)| *used).map(|(i, ..)| i.repo_tags[0].clone()).collect();
        let found = records.look(&list(true), &used, later);
        let mut freeing = Freeing::new(found, wanted, &config, later);
        let (mut gone, mut last) = (0, 0);
        while let Some(candidate) = freeing.next() {
            let (image, used, young, fails) = &here[candidate.id.parse::<usize>().unwrap()];
            prop_assert!(!used && !young && !image.pinned);
            if !fails {
                freeing.removed(candidate.size);
                gone += candidate.size;
                last = candidate.size;
            }
        }
        let could: u64 = here.iter().filter(|(i, used, young, fails)| !i.pinned && !used && !young && !fails)
            .map(|(i, ..)| i.size).sum();
        prop_assert_eq!(freeing.freed, gone);
        prop_assert_eq!(freeing.enough(), could >= wanted);
        prop_assert!(gone == 0 || gone - last < wanted, "one more than it took");
    }
}
