//! Documents made up from a seed: the same seed gives the same documents on every machine.
//! Pure: knows nothing of brokers, tokenizers or models. What the texts say is noise; their length,
//! their script and their mix of digits and Latin letters are those of news.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// Words of news, one to four characters.
const WORDS: [&str; 112] = [
    "记者",
    "今天",
    "表示",
    "市场",
    "公司",
    "经济",
    "发展",
    "中国",
    "美国",
    "投资",
    "银行",
    "股票",
    "基金",
    "上涨",
    "下跌",
    "房价",
    "楼市",
    "土地",
    "开发商",
    "政府",
    "政策",
    "调控",
    "学校",
    "学生",
    "高考",
    "教育",
    "老师",
    "大学",
    "研究",
    "科学家",
    "发现",
    "技术",
    "手机",
    "电脑",
    "互联网",
    "人工智能",
    "芯片",
    "软件",
    "数据",
    "用户",
    "平台",
    "比赛",
    "球队",
    "冠军",
    "联赛",
    "球员",
    "教练",
    "进球",
    "主场",
    "电影",
    "演员",
    "导演",
    "票房",
    "音乐",
    "歌手",
    "游戏",
    "玩家",
    "版本",
    "更新",
    "角色",
    "汽车",
    "新能源",
    "电动车",
    "销量",
    "发动机",
    "旅游",
    "景区",
    "游客",
    "酒店",
    "航班",
    "农业",
    "粮食",
    "农民",
    "种植",
    "丰收",
    "军事",
    "演习",
    "海军",
    "导弹",
    "国际",
    "会议",
    "总统",
    "外交",
    "合作",
    "协议",
    "社会",
    "警方",
    "事故",
    "救援",
    "医院",
    "医生",
    "患者",
    "疫苗",
    "健康",
    "文化",
    "历史",
    "博物馆",
    "传统",
    "孩子",
    "父母",
    "家庭",
    "天气",
    "暴雨",
    "高温",
    "城市",
    "地铁",
    "交通",
    "项目",
    "建设",
    "企业",
    "增长",
    "同比",
];
/// Words that join others.
const JOINTS: [&str; 20] = [
    "的", "在", "和", "将", "对", "与", "被", "为", "了", "是", "从", "由", "向", "或", "已", "再",
    "更", "最", "等", "及",
];
const MARKS: [&str; 4] = ["，", "，", "。", "、"];
const LATIN: [&str; 8] = ["AI", "GDP", "NBA", "5G", "iPhone", "A股", "CEO", "IPO"];
const SOURCES: [&str; 4] = ["wire", "city-desk", "sports", "markets"];

/// Characters of headlines, by tenths of them: those of 20,000 news titles (TNEWS, the part without labels; the shortest
/// and longest hundredth left out). Their spread is what padding costs; with a prompt they have about 40 tokens.
const TITLE_CHARACTERS: [usize; 11] = [8, 13, 16, 19, 21, 24, 26, 28, 29, 31, 39];
/// Characters of an article: from a paragraph to more than a model reads.
const ARTICLE_CHARACTERS: std::ops::Range<usize> = 90..500;
/// Articles among a hundred mixed documents; a wire carries more headlines than articles.
const ARTICLES_PER_HUNDRED: u32 = 30;
/// A document is published every so many seconds.
const PUBLISHED_EVERY_SECONDS: i64 = 7;
/// 2024-01-01T00:00:00Z.
const FIRST_PUBLISHED_SECONDS: i64 = 1_704_067_200;

/// Which documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mix {
    /// Headlines alone.
    Titles,
    /// Headlines with a body.
    Articles,
    /// Both, as on a wire.
    Mixed,
}

impl Mix {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 3] = [Self::Titles, Self::Articles, Self::Mixed];

    /// The mix of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mix| mix.name() == name)
    }

    /// As it is written in results and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::Titles => "titles",
            Self::Articles => "articles",
            Self::Mixed => "mixed",
        }
    }
}

/// A made-up document as its JSON body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct BenchDocument {
    /// `bench-N`.
    pub id: String,
    /// A headline.
    pub title: String,
    /// A body, empty for headlines.
    pub text: String,
    /// RFC 3339.
    pub published_at: String,
    /// A desk.
    pub source: &'static str,
}

/// `count` documents; the same for the same `seed`.
pub(super) fn documents(mix: Mix, count: usize, seed: u64) -> Vec<BenchDocument> {
    let mut random = StdRng::seed_from_u64(seed);
    (0_i64..)
        .take(count)
        .map(|number| document(mix, number, &mut random))
        .collect()
}

fn document(mix: Mix, number: i64, random: &mut StdRng) -> BenchDocument {
    let title = text(title_characters(random), false, random);
    let is_article = match mix {
        Mix::Titles => false,
        Mix::Articles => true,
        Mix::Mixed => random.random_range(0..100) < ARTICLES_PER_HUNDRED,
    };
    let text = if is_article {
        let characters = random.random_range(ARTICLE_CHARACTERS);
        text(characters, true, random)
    } else {
        String::new()
    };
    let published = FIRST_PUBLISHED_SECONDS + number * PUBLISHED_EVERY_SECONDS;
    BenchDocument {
        id: format!("bench-{number}"),
        title,
        text,
        published_at: jiff::Timestamp::from_second(published)
            .unwrap_or_default()
            .to_string(),
        source: pick(&SOURCES, random),
    }
}

/// A length drawn from the distribution whose deciles are [`TITLE_CHARACTERS`].
fn title_characters(random: &mut StdRng) -> usize {
    let decile = random.random_range(1..TITLE_CHARACTERS.len());
    match TITLE_CHARACTERS.get(decile - 1..=decile) {
        Some(&[shortest, longest]) => random.random_range(shortest..=longest),
        _ => 0,
    }
}

/// At least `characters` characters, at most a word more.
fn text(characters: usize, sentences: bool, random: &mut StdRng) -> String {
    let mut text = String::with_capacity(characters * 3);
    let mut length = 0;
    while length < characters {
        let year = random.random_range(2001..2025).to_string();
        let word = match random.random_range(0..100) {
            0..=2 => pick(&LATIN, random),
            3..=5 => year.as_str(),
            6..=25 => pick(&JOINTS, random),
            26..=33 if sentences => pick(&MARKS, random),
            _ => pick(&WORDS, random),
        };
        text.push_str(word);
        length += word.chars().count();
    }
    text
}

fn pick(words: &[&'static str], random: &mut StdRng) -> &'static str {
    let at = random.random_range(0..words.len());
    words.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_documents_and_another_gives_others() {
        let first = documents(Mix::Mixed, 50, 7);
        assert_eq!(first, documents(Mix::Mixed, 50, 7));
        assert_ne!(first, documents(Mix::Mixed, 50, 8));
        assert_eq!(first[..20], documents(Mix::Mixed, 20, 7)[..]);
    }

    #[test]
    fn mixes_have_the_lengths_they_say() {
        let titles = documents(Mix::Titles, 2000, 1);
        assert!(titles.iter().all(|document| document.text.is_empty()));
        let mut lengths: Vec<_> = titles.iter().map(|one| one.title.chars().count()).collect();
        lengths.sort_unstable();
        assert!(lengths[0] >= 8 && lengths[1999] <= 46, "{lengths:?}");
        assert!((22..=27).contains(&lengths[1000]), "{}", lengths[1000]);
        assert!((11..=14).contains(&lengths[200]), "{}", lengths[200]);
        for document in documents(Mix::Articles, 200, 1) {
            assert!((90..=510).contains(&document.text.chars().count()));
        }
        let mixed = documents(Mix::Mixed, 1000, 1);
        let articles = mixed.iter().filter(|one| !one.text.is_empty()).count();
        assert!((250..=350).contains(&articles), "{articles}");
    }
}
