// Answers requests: from an export to the bytes of a reply. Knows neither sockets nor threads.
//
// A request is first tried without waiting: what is in memory (cached tables, cached pages) is
// answered at once by the thread that received it, which costs a tenth of handing it over. What has
// to wait is answered by Answer, on whatever thread can wait.
#pragma once

#include <functional>
#include <string_view>

#include "nbd/export.h"
#include "nbd/reply.h"

namespace platter::nbd {

// Told of each error that a client gets to see, with the text that the client does not get, since
// it may name files of this machine. Any thread.
using ErrorLog = std::function<void(const Export&, const Request&, const Error&)>;

// Appends the reply if that takes no waiting; otherwise nothing. Any thread.
bool TryAnswer(const Export& from, const Request& request, Outbox& out);

// Appends the reply, whatever it takes. An error is a reply too. Any thread.
void Answer(const Export& from, const Request& request, Outbox& out, const ErrorLog& log);

// Bytes of memory that the request and its reply take while they are dealt with.
uint64_t CostOf(const Request& request);

}  // namespace platter::nbd
